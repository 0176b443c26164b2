"""Completions of prompts, in batches, with transformers' generation."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .context import context_length, over
from .encode import as_row, prompt_ids
from .generation import generate
from .messages import is_messages, naming_row, text_behind
from .stop_tokens import stop_token_ids


Prompt = str | list[dict] | Mapping  # text, messages, or either with `tools` and `chat_template_kwargs`


@dataclass(frozen=True)
class Completion:
    """
    Attributes:
        text (`str`): without special tokens, and without its stop token, which need be no special one.
        length (`int`): in tokens, the stop token included.
        ended (`bool`): whether the model stopped by itself, rather than at `max_new_tokens`.
        token_ids (`list[int]`): up to its stop token.
    """

    text: str
    length: int
    ended: bool
    token_ids: list[int]


def sample_completions(*args, **kwargs) -> list[list[str]]:
    """The texts of [`sample`]."""
    return [[completion.text for completion in group] for group in sample(*args, **kwargs)]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    max_new_tokens: int,
    temperature: float = 0.0,
    num_samples: int = 1,
    top_p: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    description: str = "Sampling",
    **generate_kwargs,
) -> list[list[Completion]]:
    """
    Sample completions.

    Args:
        model ([`~transformers.PreTrainedModel`])
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            With a padding token; prompts are padded on the left, whatever its `padding_side`.
        prompts (`list[str]`, `list[list[dict]]` or `list[dict]`):
            Text, or messages, which the tokenizer's chat template writes out, or a row's prompt with its `tools` and
            `chat_template_kwargs`: see [`~text.encode.asked`].
        max_new_tokens (`int`):
            Longest completion, in tokens.
        temperature (`float`, *optional*, defaults to `0.0`):
            0 is greedy decoding, which gives the same completion `num_samples` times.
        num_samples (`int`, *optional*, defaults to `1`):
            Completions per prompt.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling: only the likeliest tokens whose probabilities add up to this.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated together.
        seed (`int`, *optional*, defaults to `0`):
            Same seed, same samples (at the same batch size, unless greedy).
        description (`str`, *optional*, defaults to `"Sampling"`):
            Label of the progress bar.
        **generate_kwargs:
            `top_k`, `min_p` and `beams` of a [`~text.samplers.Sampler`]; more for `model.generate`, such as
            `synced_gpus`.

    Returns:
        `list[list[Completion]]`: for each prompt its completions.

    Raises:
        `ValueError`: `temperature` is negative, or a prompt leaves no room for `max_new_tokens` in the model's
            context.
    """
    if temperature < 0:
        raise ValueError(f"`temperature={temperature}` must be 0 (greedy) or more.")
    encoded = encode_prompts(tokenizer, prompts, model.config.is_encoder_decoder)
    check_context(model, encoded, max_new_tokens)
    stop_tokens = stop_token_ids(model, tokenizer)
    set_seed(seed)
    repeats = num_samples if temperature > 0 else 1
    drawn = generate(
        model,
        [ids for ids in encoded for _ in range(repeats)],
        stop_tokens,
        tokenizer.pad_token_id,
        max_new_tokens,
        temperature,
        batch_size,
        top_p,
        description,
        **generate_kwargs,
    )
    goes_on = [behind_text(prompt) and not model.config.is_encoder_decoder for prompt in prompts]
    completions = [
        completion_of(tokenizer, ids, ids[-1] in stop_tokens, goes_on[i // repeats]) for i, ids in enumerate(drawn)
    ]
    return [completions[i : i + repeats] * (num_samples // repeats) for i in range(0, len(completions), repeats)]


def behind_text(prompt: Prompt) -> bool:
    """Whether what is sampled goes on from a text: a turn of a chat begins anew."""
    return not is_messages(as_row(prompt)["prompt"])


def completion_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], ended: bool, goes_on: bool) -> Completion:
    """What was sampled, in words too, with the space before its first word where it `goes_on` from a text."""
    said = ids[:-1] if ended else ids
    text = text_behind(tokenizer, said) if goes_on else tokenizer.decode(said, skip_special_tokens=True)
    return Completion(text, len(ids), ended, ids)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], apart: bool = False) -> list[list[int]]:
    """
    Token ids of prompts, as training has them: text as it is, messages by the chat template; with `apart` an
    encoder's.
    """
    if (
        not apart
        and tokenizer.chat_template is None
        and any(is_messages(as_row(prompt)["prompt"]) for prompt in prompts)
    ):
        raise ValueError(
            "The prompts are messages, and the tokenizer has no chat template to write them out with. Sample from a "
            "chat model, or give prompts as text."
        )
    encoded = []
    for i, prompt in enumerate(prompts):
        with naming_row(f"Prompt {i}"):
            encoded.append(prompt_ids(tokenizer, prompt, apart))
        if not encoded[-1]:
            raise ValueError(f"Prompt {i} is empty: there is not one token for a model to go on from.")
    return encoded


def check_context(
    model: PreTrainedModel, encoded: list[list[int]], max_new_tokens: int, key: str = "max_new_tokens"
) -> None:
    """
    Raises:
        `ValueError`: a prompt leaves no room for `max_new_tokens` in the model's context.
    """
    lengths, apart = dict(enumerate(map(len, encoded))), model.config.is_encoder_decoder
    too_long = too_long_for(context_length(model.config), lengths, max_new_tokens, key, apart)
    if too_long:
        raise ValueError(f"{len(too_long)} of {next(iter(too_long.values()))}")


def too_long_for(
    context: int | None,
    lengths: dict[int, int],
    max_new_tokens: int,
    key: str = "max_new_tokens",
    apart: bool = False,
) -> dict[int, str]:
    """
    Of the prompts that leave no room for `max_new_tokens`, by number, what to say behind "1 of "; with `apart` an
    encoder and a decoder have a context each.
    """
    needed = {i: max(length, max_new_tokens) if apart else length + max_new_tokens for i, length in lengths.items()}
    return {
        i: f"{len(lengths)} prompts (the first is number {i}, of {lengths[i]} tokens) leave no room for "
        f"`{key}={max_new_tokens}` in the model's context of {context} tokens. Lower `{key}`, shorten those prompts "
        "or leave them out."
        for i in over(context, needed)
    }
