"""A talk with a model: what was said so far, the next answer, and the reward of each of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import TextStreamer

from ..rewards import SoftQReward
from ..rewards.soft_q_settings import saved_settings
from ..rewards.token_pieces import token_pieces
from ..tasks.arguments import EndArguments
from ..text.context import context_length
from ..text.sampling import encode_prompts, sample
from .loaded_models import LoadedModel


_LONGEST = 256  # tokens of an answer, where nothing else is said


@dataclass
class TalkSettings(EndArguments):
    """
    How a model is asked.

    Args:
        system (`str`, *optional*):
            A message of the system before the talk, for models with a chat template.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`)
        max_new_tokens (`int`, *optional*):
            If unset 256, or as many as the model's context has room for.
        rewards (`bool`, *optional*, defaults to `True`):
            Whether to give the reward of each token of a model that IRL trained.
        dtype (`str`, *optional*, defaults to `"auto"`)

    Raises:
        `ValueError`: a value is out of range.
    """

    system: str | None = field(default=None, metadata={"help": "The system's message, for chat models."})
    temperature: float = field(default=0.7, metadata={"help": "0 is greedy decoding."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 is off."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest answer, in tokens; 256 if unset, or what there is room for."}
    )
    rewards: bool = field(default=True, metadata={"help": "Colour tokens by the reward of a model that IRL trained."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The models' data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"`temperature: {self.temperature}` must be 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p: {self.top_p}` must be above 0 and at most 1.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens: {self.max_new_tokens}` leaves nothing to say. Set it to 1 or more.")


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        text (`str`)
        length (`int`): in tokens.
        ended (`bool`): by itself, rather than at `max_new_tokens`.
        pieces (`list[tuple[str, float | None]]`): the text of each token and its reward in nats, where it has one.
            Empty if the model holds no reward.
    """

    text: str
    length: int
    ended: bool
    pieces: list[tuple[str, float | None]]


class Talk:
    """
    A model and what was said with it.

    Args:
        path (`str`): folder, Hub id or adapter.
        settings ([`TalkSettings`])
    """

    def __init__(self, path: str, settings: TalkSettings):
        self.settings = settings
        loaded = LoadedModel(path, settings.dtype, 1, eos_token=settings.eos_token)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        trained = saved_settings(path) if settings.rewards else {}
        self.reward = None
        if trained.get("lambda_td"):  # of plain likelihood there is none that was learnt
            self.reward = SoftQReward(self.model, self.tokenizer, settings=trained)
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.settings.system}] if self.settings.system else []

    def ask(self, text: str, seed: int, said: Callable[[str], None]) -> Answer:
        """
        The model's answer; `said` gets it piece by piece, as it is sampled.

        Raises:
            `ValueError`: the prompt leaves no room for `max_new_tokens` in the model's context.
        """
        is_chat = self.tokenizer.chat_template is not None
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = messages if is_chat else text
        ((completion,),) = sample(
            self.model,
            self.tokenizer,
            [prompt],
            self._longest(prompt),
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=seed,
            description="",
            streamer=_streamer(self.tokenizer, said),
        )
        pieces = self._pieces(prompt, completion.token_ids)
        if is_chat:
            self.messages = [*messages, {"role": "assistant", "content": completion.text}]
        return Answer(completion.text, completion.length, completion.ended, pieces)

    def _longest(self, prompt) -> int:
        """Tokens that an answer may have."""
        context = context_length(self.model.config)
        if self.settings.max_new_tokens is not None or context is None:
            return self.settings.max_new_tokens or _LONGEST
        if self.model.config.is_encoder_decoder:  # whose answer has a context of its own
            return min(_LONGEST, context)
        room = context - len(encode_prompts(self.tokenizer, [prompt])[0])
        return min(_LONGEST, room) if room > 0 else _LONGEST  # which says that it does not fit

    def _pieces(self, prompt, token_ids: list[int]) -> list[tuple[str, float | None]]:
        if self.reward is None:
            return []
        (scored,) = self.reward.score([prompt], completion_ids=[token_ids])
        texts = token_pieces(self.tokenizer, token_ids)
        return [
            (text, float(reward) if known else None)
            for text, reward, known in zip(texts, scored.rewards, scored.has_reward, strict=True)
            if known or text not in self.tokenizer.all_special_tokens
        ]


def _streamer(tokenizer, said: Callable[[str], None]):
    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False):
            said(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
