"""
Ask one model, or several side by side, and see the reward of every token they say.

```bash
trl-irl chat tuned
trl-irl chat base=Qwen/Qwen2.5-0.5B tuned=outputs/irl --prompt "What is 2 + 3?"
```

A model with a chat template is asked in its words, and remembers the talk; another goes on from the text as it is.
Without `--prompt` it asks for one after another: `\\n` is a new line, `/reset` forgets the talk, and an empty line or
Ctrl-D ends it. A model that IRL trained shows its tokens on blue where the reward inside it is high, and on red where
it is low.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..evaluation.loaded_models import LoadedModel
from ..evaluation.settings import named
from ..tasks.arguments import EndArguments


_LONGEST = 256  # tokens of an answer, where nothing else is said


@dataclass
class ChatArguments(EndArguments):
    """
    Arguments of the `chat` command.

    Args:
        models (`list[str]`):
            Folders, Hub ids or adapters; `name=path` gives one a name. They may stand without the key, first.
        prompt (`str`, *optional*):
            Ask this and end.
        system (`str`, *optional*):
            A message of the system before the talk, for models with a chat template.
        temperature (`float`, *optional*, defaults to `0.7`):
            0 is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`)
        max_new_tokens (`int`, *optional*):
            If unset 256, or as many as the model's context has room for.
        seed (`int`, *optional*, defaults to `0`):
            Of the first answer; each later one has the next.
        rewards (`bool`, *optional*, defaults to `True`):
            Whether to colour the tokens of a model that IRL trained by its reward.
        dtype (`str`, *optional*, defaults to `"auto"`)
    """

    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders, Hub ids or adapters; `name=path` gives one a name."}
    )
    prompt: str | None = field(default=None, metadata={"help": "Ask this and end."})
    system: str | None = field(default=None, metadata={"help": "The system's message, for chat models."})
    temperature: float = field(default=0.7, metadata={"help": "0 is greedy decoding."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 is off."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest answer, in tokens; 256 if unset, or what there is room for."}
    )
    seed: int = field(default=0, metadata={"help": "Of the first answer; each later one has the next."})
    rewards: bool = field(default=True, metadata={"help": "Colour tokens by the reward of a model that IRL trained."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The models' data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )

    def __post_init__(self):
        if not self.models:
            raise ValueError("No model. Name one or more: `trl-irl chat MODEL`, `--models base=MODEL tuned=FOLDER`.")
        named(self.models, "models")  # are they told apart?
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
        arguments ([`ChatArguments`])
    """

    def __init__(self, path: str, arguments: ChatArguments):
        from ..rewards import SoftQReward
        from ..rewards.soft_q_settings import saved_settings

        self.arguments = arguments
        loaded = LoadedModel(path, arguments.dtype, 1, eos_token=arguments.eos_token)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        settings, self.reward = saved_settings(path) if arguments.rewards else {}, None
        if settings.get("lambda_td"):  # of plain likelihood there is none that was learnt
            told = {key: settings[key] for key in ("gamma", "terminal_value")}
            self.reward = SoftQReward(self.model, self.tokenizer, **told)
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.arguments.system}] if self.arguments.system else []

    def ask(self, text: str, seed: int, said: Callable[[str], None]) -> Answer:
        """
        The model's answer; `said` gets it piece by piece, as it is sampled.

        Raises:
            `ValueError`: the prompt leaves no room for `max_new_tokens` in the model's context.
        """
        from ..text.sampling import sample

        is_chat = self.tokenizer.chat_template is not None
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = messages if is_chat else text
        ((completion,),) = sample(
            self.model,
            self.tokenizer,
            [prompt],
            self._longest(prompt),
            temperature=self.arguments.temperature,
            top_p=self.arguments.top_p,
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
        from ..text.context import context_length
        from ..text.sampling import encode_prompts

        context = context_length(self.model.config)
        if self.arguments.max_new_tokens is not None or context is None:
            return self.arguments.max_new_tokens or _LONGEST
        room = context - len(encode_prompts(self.tokenizer, [prompt])[0])
        return min(_LONGEST, room) if room > 0 else _LONGEST  # which says that it does not fit

    def _pieces(self, prompt, token_ids: list[int]) -> list[tuple[str, float | None]]:
        from ..rewards.token_pieces import token_pieces

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
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False):
            said(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def answers(talks: dict[str, Talk], text: str, seed: int) -> None:
    """Ask every model, one after the other, and show what they say: side by side, or below each other on a pipe."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        for name, talk in talks.items():
            answer = talk.ask(text, seed, lambda piece: None)
            print(f"{name}: {answer.text.strip()}\n  ({told_of(answer)})", flush=True)
        return
    shown: dict[str, object] = dict.fromkeys(talks, "")
    with Live(_columns(shown), console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        for name, talk in talks.items():

            def said(piece: str, name=name) -> None:
                shown[name] = f"{shown[name]}{piece}"
                live.update(_columns(shown))

            shown[name] = _coloured(talk.ask(text, seed, said))
            live.update(_columns(shown))


def told_of(answer: Answer) -> str:
    """`12 tokens, return -3.21 nats`."""
    told = f"{answer.length} tokens" + ("" if answer.ended else ", cut")
    rewards = [reward for _, reward in answer.pieces if reward is not None]
    return told + (f", return {sum(rewards):+.2f} nats" if rewards else "")


def _columns(shown: dict[str, object]):
    from rich.table import Table

    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for name in shown:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*shown.values())
    return table


def _coloured(answer: Answer):
    from rich.text import Text

    from ..rewards.heatmap import colour, full_colour

    largest = full_colour([reward for _, reward in answer.pieces if reward is not None])
    text = Text()
    for piece, reward in answer.pieces or [(answer.text, None)]:
        shown = piece.replace("\n", "↵\n")  # or the colour of a new line would be of nothing
        text.append(shown, style="" if reward is None else f"black on {colour(reward / largest)}")
    text.append(f"\n({told_of(answer)})", style="dim")
    return text


def prompts(talks: Sequence[Talk]) -> Iterator[str]:
    """What the user types, until an empty line or the end of the input."""
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").replace("\\n", "\n")
        except EOFError:
            return
        if not text.strip():
            return
        if text.strip() == "/reset":
            for talk in talks:
                talk.reset()
            continue
        yield text


def main(arguments: ChatArguments) -> None:
    """
    Load the models, ask and show.

    Raises:
        `FileNotFoundError`, `ValueError`: a model is not there or no language model, or the prompt is too long.
    """
    from ..tasks.files import check_local_model
    from .console.failures import report

    paths = named(arguments.models, "models")
    for path in paths.values():
        check_local_model(path, "models")
    talks = {name: Talk(path, arguments) for name, path in paths.items()}
    if arguments.prompt is not None:
        answers(talks, arguments.prompt, arguments.seed)
        return
    for i, text in enumerate(prompts(list(talks.values()))):
        try:
            answers(talks, text, arguments.seed + i)
        except ValueError as error:  # such as a talk that no longer fits: the next may
            report("trl-irl chat", f"{error} `/reset` forgets the talk so far.")


def make_parser():
    from .console.parser import RecipeParser

    return RecipeParser((ChatArguments,), __doc__, prog="trl-irl chat")


def run(argv: list[str] | None = None) -> int:
    """The command; see [`~commands.console.failures.run_reporting`]."""
    from .console.failures import run_reporting

    words = list(sys.argv[1:] if argv is None else argv)
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if first:
        words = ["--models", *words]
    return run_reporting(make_parser(), main, words, lambda arguments: "The talk is not kept.")


if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
