"""Completions of prompts, in batches, with transformers' generation."""

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float = 0.0,
    num_samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    description: str = "Sampling",
) -> list[list[str]]:
    """
    Sample completions.

    Args:
        model ([`~transformers.PreTrainedModel`])
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            With a padding token; prompts are padded on the left, whatever its `padding_side`.
        prompts (`list[str]`)
        max_new_tokens (`int`):
            Longest completion, in tokens.
        temperature (`float`, *optional*, defaults to `0.0`):
            0 is greedy decoding, which gives the same completion `num_samples` times.
        num_samples (`int`, *optional*, defaults to `1`):
            Completions a prompt.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences generated together.
        seed (`int`, *optional*, defaults to `0`):
            Same seed, same samples (at the same batch size, unless greedy).
        description (`str`, *optional*, defaults to `"Sampling"`):
            Label of the progress bar.

    Returns:
        `list[list[str]]`: for each prompt its completions, without special tokens.
    """
    if temperature < 0:
        raise ValueError(f"`temperature={temperature}` must be 0 (greedy) or more.")
    was_training = model.training
    model.eval()
    set_seed(seed)
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    repeats = num_samples if temperature > 0 else 1
    flat = [prompt for prompt in prompts for _ in range(repeats)]
    completions: list[str] = []
    for start in tqdm(range(0, len(flat), batch_size), desc=description, leave=False):
        batch = tokenizer(flat[start : start + batch_size], return_tensors="pt", padding=True, padding_side="left").to(
            model.device
        )
        batch.pop("token_type_ids", None)
        generated = model.generate(
            **batch, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **choice
        )
        completions += tokenizer.batch_decode(generated[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
    model.train(was_training)
    return [completions[i : i + repeats] * (num_samples // repeats) for i in range(0, len(completions), repeats)]
