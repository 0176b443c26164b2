"""The reward inside a model that IRL trained: for every token, and as a reward function for TRL's RL trainers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..text.encode import as_row, encode_rows, prompt_ids, warn_of_seams, with_template_arguments
from ..text.local_paths import check_is_there
from ..text.messages import check_alike, check_no_images, checked, said_and_read
from ..text.stop_tokens import stop_token_ids
from .adapters import ActiveAdapters, check_layers_adapted, default_device, is_peft, tokenizer_of
from .arguments import check_batch_size, check_discount, check_model_and_tokenizer, is_number
from .frozen_models import check_language_model, check_same_tokens, load_language_model, whole_weights
from .soft_q_settings import saved_settings
from .token_values import token_values


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


KINDS = ("soft_q", "log_ratio", "advantage")
AGGREGATES = ("sum", "mean", "discounted")

Prompt = str | list[dict] | list[int] | Mapping
Completion = str | list[dict]


@dataclass(frozen=True)
class CompletionReward:
    """
    The reward of one completion; arrays have the shape `(tokens,)`, float32 unless said otherwise.

    Attributes:
        token_ids (`np.ndarray`, int64)
        rewards (`np.ndarray`): reward of each token, in nats; 0 where it is not known (see `has_reward`).
        has_reward (`np.ndarray`, bool): False at the end of a completion that was cut and, with
            `terminal_value="mask"`, at a stop token.
        q, v (`np.ndarray`): Q(s_t, a_t) and V(s_t) of the model, in nats.
        gamma (`float`)
    """

    token_ids: np.ndarray
    rewards: np.ndarray
    has_reward: np.ndarray
    q: np.ndarray
    v: np.ndarray
    gamma: float

    @property
    def sum(self) -> float:
        """Undiscounted return, in nats; 0 for an empty completion."""
        return float(self.rewards.sum(dtype=np.float64))

    @property
    def discounted(self) -> float:
        """Return from the prompt, sum of gamma^t r_t, in nats."""
        return float((self.rewards * self.gamma ** np.arange(len(self.rewards), dtype=np.float64)).sum())

    @property
    def mean(self) -> float:
        """Mean over the tokens that have a reward, in nats per token; 0 if none has."""
        return self.sum / max(int(self.has_reward.sum()), 1)

    def number(self, aggregate: str) -> float | None:
        """
        Its `sum`, `mean` or `discounted`; `None` where no token's reward is known, since 0 would be more than most
        texts have.
        """
        return getattr(self, aggregate) if self.has_reward.any() else None

    @property
    def log_likelihood(self) -> float:
        """log pi(completion | prompt), in nats."""
        return float((self.q - self.v).sum(dtype=np.float64))

    def as_advantage(self) -> CompletionReward:
        """The same completion with Q - V, which is log pi, as the reward of every token."""
        return replace(self, rewards=self.q - self.v, has_reward=np.ones_like(self.has_reward))

    @property
    def initial_value(self) -> float:
        """V(s_0), the value of the prompt, in nats; NaN for an empty completion."""
        return float(self.v[0]) if len(self.v) else float("nan")


class SoftQReward:
    """
    Reads the reward of completions off a language model: `r(s_t, a_t) = Q(s_t, a_t) - gamma * V(s_{t+1})`, the logits
    being Q and their logsumexp V (arXiv 2409.01369), by the rules of training.

    With `gamma = 1`, `terminal_value = "zero"` and values at temperature 1 the sum of `"soft_q"` rewards over a
    completion that ends with its stop token telescopes to log pi(completion | prompt) + V(s_0): completions of one
    prompt are ranked as by likelihood. Rewards of tokens, `gamma < 1`, means, and sums with `"mask"`, which leave out
    the stop token and the last value, are not.

    An instance is a reward function for [`~trl.GRPOTrainer`] and [`~trl.RLOOTrainer`]:
    `reward_funcs=SoftQReward(...)`.

    Example:

    ```python
    >>> from trl_irl import SoftQReward

    >>> reward = SoftQReward("outputs/gsm8k/irl_full")
    >>> (scored,) = reward.score(["QUESTION: 1 + 1?\\n\\nSOLUTION:"], [" 1 + 1 = 2\\n#### 2"])
    >>> scored.rewards, scored.sum
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder, also as a `Path`, Hub id, adapter, or the model itself.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's, if `model` is not a name.
        kind (`str`, *optional*, defaults to `"soft_q"`):
            `"soft_q"`; `"log_ratio"`, log pi - log pi_ref against `ref_model`, the dense reward that plain SFT already
            gives (arXiv 2510.02493); or `"advantage"`, Q - V.
        ref_model (as `model`, *optional*):
            The reference of `"log_ratio"`, over the same vocabulary.
        gamma (`float`, *optional*), terminal_value (`str`, *optional*):
            If unset, those the model was trained with, which [`IRLTrainer`] saves beside it; else 1 and `"mask"`. The
            temperature of its values is always that of training.
        aggregate (`str`, *optional*, defaults to `"sum"`):
            What a call makes of a completion's rewards: `"sum"`, `"mean"` or `"discounted"`.
        clip (`float`, *optional*):
            A call's numbers are cut to lie within `-clip` and `clip`, after normalisation.
        batch_size (`int`, *optional*, defaults to `8`)
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of a model given by name; Q and V are float32 whatever it is.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template, the same that the trainer of the policy has under this name: TRL does not
            tell a reward function of them.
        settings (`dict`, *optional*):
            How the model was trained, as [`~rewards.soft_q_settings.saved_settings`] reads it, where `model` is not
            the name of where it lies.
        name (`str`, *optional*):
            What TRL's trainers log the reward under; its kind and aggregate if unset. Two rewards of one trainer need
            two names: under one, the logs mix them.

    Raises:
        `FileNotFoundError`: a folder that is named is not there.
        `TypeError`: the model is none, nor the name of one, or the tokenizer is none.
        `ValueError`: `kind`, `aggregate` or `terminal_value` is unknown, or a number is out of range; `"log_ratio"`
            has no reference, or one of another kind of model; a model has no tokenizer, or its adapter is of virtual
            tokens; or a model given by name is a reward model, or was not saved whole.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        kind: str = "soft_q",
        ref_model: str | PreTrainedModel | PeftModel | None = None,
        gamma: float | None = None,
        terminal_value: str | None = None,
        aggregate: str = "sum",
        clip: float | None = None,
        batch_size: int = 8,
        dtype: str = "auto",
        chat_template_kwargs: dict | None = None,
        settings: dict | None = None,
        name: str | None = None,
    ):
        from ..soft_q.terms import check_terminal_value

        for key, value, choices in (("kind", kind, KINDS), ("aggregate", aggregate, AGGREGATES)):
            if value not in choices:
                raise ValueError(f"`{key}={value!r}` is unknown; there are {', '.join(choices)}.")
        if (kind == "log_ratio") != (ref_model is not None):
            raise ValueError(
                f'`kind={kind!r}` with `ref_model={"None" if ref_model is None else "..."}`: "log_ratio" compares '
                "the model with a reference, and no other kind has one."
            )
        check_discount(gamma)
        if clip is not None and not (is_number(clip) and clip > 0):
            raise ValueError(f"`clip={clip}` must be above 0, in the reward's own unit, or None for no bound.")
        check_batch_size(batch_size)
        model, ref_model = (os.fspath(x) if isinstance(x, os.PathLike) else x for x in (model, ref_model))
        check_model_and_tokenizer(model, tokenizer)
        if isinstance(ref_model, str):
            check_is_there(ref_model, "ref_model")
        if settings is None:
            settings = saved_settings(model) if isinstance(model, str) else {}
        self.kind, self.aggregate, self.clip, self.batch_size = kind, aggregate, clip, batch_size
        self.gamma = settings.get("gamma", 1.0) if gamma is None else gamma
        self.terminal_value = settings.get("terminal_value", "mask") if terminal_value is None else terminal_value
        check_terminal_value(self.terminal_value)
        self.value_temperature = settings.get("value_temperature", 1.0)
        if kind == "soft_q" and settings.get("value_origin") == "reference":
            warnings.warn(
                f"{model if isinstance(model, str) else 'This model'} was trained with `value_origin: reference`: the "
                "reward that it holds counts its values from "
                'its reference\'s, and `kind="soft_q"` counts them from zero. Over a whole completion the two differ '
                "by what they count from at its ends alone (with gamma 1); token by token they differ by as much as "
                'the reference\'s values move. `kind="advantage"` does not depend on it.',
                stacklevel=2,
            )
        self.tokenizer = tokenizer if tokenizer is not None else tokenizer_of(model)
        if isinstance(ref_model, str):
            check_same_tokens(self.tokenizer, ref_model, "ref_model", "model", all_of_them=False)
        self.model = _loaded(model, dtype)
        self.ref_model = None if ref_model is None else _loaded(ref_model, dtype, "ref_model")
        if self.ref_model is not None:
            check_states_in_common(self.model, self.ref_model, "ref_model")
            if self.ref_model is self.model:
                raise ValueError(
                    "`ref_model` is the very model that is judged, or the base that `model`'s adapter was put into: "
                    "PEFT changes a base in place, so every ratio would be 0. Load the reference anew, by its name."
                )
        self._adapters = [ActiveAdapters(one) for one in (model, ref_model) if is_peft(one)]
        self.chat_template_kwargs = chat_template_kwargs
        self.mean, self.std = 0.0, 1.0
        self.__name__ = name or f"{kind}_{aggregate}"  # TRL's trainers log a reward function under its name

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> list[CompletionReward]:
        """
        Rewards of every token.

        Args:
            prompts (`Sequence[str]`, `Sequence[list[dict]]`, `Sequence[list[int]]` or `Sequence[dict]`):
                Text, messages, or token ids, which need `completion_ids`; or a row's `prompt` with its `tools` and
                `chat_template_kwargs`, as [`~text.encode.asked`] gives it.
            completions (`Sequence[str]` or `Sequence[list[dict]]`, *optional*):
                Text, or messages; taken as finished: an EOS follows a text, and the chat template ends a message. Of
                several messages all tokens count, as in training. What the template writes behind the last stop token
                (a newline) is left out: no policy samples it.
            completion_ids (`Sequence[Sequence[int]]`, *optional*):
                The completions as sampled, in the model's own tokens. Without a stop token at its end, a completion
                was cut, and its last token has no reward.
            ended (`Sequence[bool]`, *optional*):
                Of `completions`: which ended by themselves, all if it is not given. The others were cut: nothing
                follows their text. `completion_ids` say it by their last token.

        Of a row without a prompt, whose tokenizer has no BOS, the first token has no state, and is left out.

        Raises:
            `ValueError`: neither completions nor ids are given, the ids are not of this tokenizer, `ended` comes with
                ids, or a row does not fit into the model's context.
        """
        if completions is None and completion_ids is None:
            raise ValueError("There is nothing to score: give `completions` or `completion_ids`.")
        if completion_ids is not None and ended is not None:
            raise ValueError(
                "`ended` is of `completions`: `completion_ids` end by themselves where their last token says so."
            )
        check_alike(prompts=prompts, completions=completions, completion_ids=completion_ids, ended=ended)
        prompts = with_template_arguments(prompts, self.chat_template_kwargs)
        if completion_ids is None:
            prompts = [as_row(prompt) for prompt in prompts]
            if any(row["prompt"] and isinstance(row["prompt"][0], int) for row in prompts):
                raise ValueError("Prompts that are token ids need `completion_ids`, not `completions`.")
            pairs = enumerate(zip(prompts, completions, strict=True))
            rows = [{**row, "completion": checked(said, "completion", f"Row {i}")} for i, (row, said) in pairs]
            rows = encode_rows(self.tokenizer, rows, ended=ended, apart=self._apart)
            warn_of_seams(rows)
            stops = self.stop_tokens
            encoded = [self._without_tail(*row.ids_and_labels, stops) for row in rows]
        else:
            if completions is not None:
                self._check_tokenizer(completions, completion_ids)
            asked = [prompt_ids(self.tokenizer, prompt, self._apart) for prompt in prompts]
            encoded = [
                (prompt + list(ids), [-100] * len(prompt) + list(ids))
                for prompt, ids in zip(asked, completion_ids, strict=True)
            ]
        return self._score(encoded)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ) -> list[float | None]:
        """
        One number per completion, as TRL's trainers ask for it: aggregated, normalised, clipped. `None`, by which TRL
        leaves it out, for one without a token whose reward is known, such as a stop token alone with `"mask"`: its sum
        of 0 would be more than most texts have, and a policy would learn to say nothing.

        Raises:
            `ValueError`: as [`score`], and where the rows have images, or completions have what tools have said.
        """
        check_no_images(kwargs, "The rows have")
        _check_no_tool_results(completions or (), completion_ids)
        return self._numbers(self.score(prompts, completions, completion_ids))

    def _without_tail(self, ids: list[int], labels: list[int], stops: frozenset[int]) -> tuple[list[int], list[int]]:
        """Without the blanks that a chat template writes behind the last stop token."""
        last = next((i for i in range(len(labels) - 1, -1, -1) if labels[i] in stops), None)
        if last is None or self.tokenizer.decode(ids[last + 1 :]).strip():
            return ids, labels
        return ids[: last + 1], labels[: last + 1]

    @property
    def _apart(self) -> bool:
        """Whether the model reads the prompt and writes the completion."""
        return self.model.config.is_encoder_decoder

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens after which the state is terminal."""
        return stop_token_ids(self.model, self.tokenizer)

    def _score(self, encoded: Sequence[tuple[list[int], list[int]]]) -> list[CompletionReward]:
        for adapters in self._adapters:
            adapters.check()
        stop_tokens = self.stop_tokens
        options = {"gamma": self.gamma, "terminal_value": self.terminal_value, "batch_size": self.batch_size}
        values = token_values(self.model, encoded, stop_tokens, **options, value_temperature=self.value_temperature)
        scored = [
            CompletionReward(row.token_ids, row.reward, row.has_reward, row.q, row.v, self.gamma) for row in values
        ]
        if self.kind == "soft_q":
            return scored
        scored = [one.as_advantage() for one in scored]
        if self.kind == "log_ratio":
            of_ref = token_values(self.ref_model, encoded, stop_tokens, **options)
            scored = [replace(one, rewards=one.rewards - ref.log_pi) for one, ref in zip(scored, of_ref, strict=True)]
        return scored

    def _numbers(self, scored: Sequence[CompletionReward]) -> list[float | None]:
        returns = [one.number(self.aggregate) for one in scored]
        normalised = (np.array(returns, dtype=np.float64) - self.mean) / self.std  # None is NaN there
        numbers = normalised if self.clip is None else normalised.clip(-self.clip, self.clip)
        return [None if known is None else x for x, known in zip(numbers.tolist(), returns, strict=True)]

    def normalize_on(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
        """
        From now on a call gives 0 on average on these completions, such as demonstrations, with standard deviation 1;
        those for which it gives `None` do not count.

        Raises:
            `ValueError`: their rewards do not differ.
        """
        numbers = [one.number(self.aggregate) for one in self.score(prompts, completions)]
        returns = [x for x in numbers if x is not None]
        if len(returns) < 2 or np.std(returns) == 0:
            raise ValueError("Rewards cannot be normalised on completions that all have the same one.")
        self.mean, self.std = float(np.mean(returns)), float(np.std(returns))

    def reads(
        self,
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int] | None],
        ended: Sequence[bool] | None = None,
    ) -> bool:
        """
        Whether these token ids are there and are these texts in the reward model's own tokenizer; those that `ended`
        have their stop token behind the text.
        """
        ended = [False] * len(texts) if ended is None else ended
        rows = list(zip(texts, completion_ids, ended, strict=True))
        return all(ids is not None for _, ids, _ in rows) and all(
            said_and_read(self.tokenizer, *row)[2] for row in rows
        )

    def _check_tokenizer(self, completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]]) -> None:
        for completion, ids in zip(completions, completion_ids, strict=True):
            text, ours, is_own = said_and_read(self.tokenizer, completion, ids)
            if not is_own:
                raise ValueError(
                    f"The policy's tokens are not the reward model's: ids that the policy reads as {text[:60]!r} are "
                    f"{ours[:60]!r} here. Use a reward model with the policy's tokenizer."
                )


def check_states_in_common(model: PreTrainedModel, reference: PreTrainedModel, key: str) -> None:
    """
    Raises:
        `ValueError`: one of them is an encoder-decoder model and the other is none.
    """
    if model.config.is_encoder_decoder != reference.config.is_encoder_decoder:
        raise ValueError(
            f"The model and `{key}` have no states in common: one of them is an encoder-decoder model, which reads "
            "prompt and completion apart. Take a reference of the model's own kind."
        )


def _check_no_tool_results(completions: Sequence[Completion], completion_ids) -> None:
    said = (message for turns in completions if not isinstance(turns, str) for message in turns)
    if completion_ids is not None and any(message.get("role") == "tool" for message in said):
        raise ValueError(
            "A completion has the results of tools among its tokens, and SoftQReward would take them for the policy's "
            "own. Train without `tools`, or by another reward."
        )


def _loaded(model: str | PreTrainedModel | PeftModel, dtype: str, key: str = "model") -> PreTrainedModel:
    if is_peft(model):
        check_layers_adapted(model.active_peft_config, f"SoftQReward's `{key}`")
        return model.get_base_model()  # the adapter's layers are in it
    if not isinstance(model, str):
        check_language_model(model, key, encoder_decoder=True)
        return model
    with whole_weights():
        loaded = load_language_model(model, key, encoder_decoder=True, dtype=dtype)
    return loaded.to(default_device()).eval()
