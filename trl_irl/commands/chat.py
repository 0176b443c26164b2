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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..evaluation.settings import named
from ..evaluation.talk import Answer, Talk, TalkSettings
from .console.command import command


@dataclass
class ChatArguments(TalkSettings):
    """
    Arguments of the `chat` command: [`~evaluation.talk.TalkSettings`] and

    Args:
        models (`list[str]`):
            Folders, Hub ids or adapters; `name=path` gives one a name. They may stand without the key, first.
        prompt (`str`, *optional*):
            Ask this and end.
        seed (`int`, *optional*, defaults to `0`):
            Of the first answer; each later one has the next.
    """

    # The word null is a prompt, and unsets none. Without a type, it is no key.
    any_text = ("prompt", "system")

    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders, Hub ids or adapters; `name=path` gives one a name."}
    )
    prompt: str | None = field(default=None, metadata={"help": "Ask this and end."})
    seed: int = field(default=0, metadata={"help": "Seed of the first answer; each later one has the next."})

    def __post_init__(self):
        if not self.models:
            raise ValueError("No model. Name one or more: `trl-irl chat MODEL`, `--models base=MODEL tuned=FOLDER`.")
        named(self.models, "models")  # has each a name of its own?
        super().__post_init__()


def answers(talks: dict[str, Talk], text: str, seed: int) -> None:
    """Ask every model, one after the other, and show what they say: side by side, or below each other on a pipe."""
    from rich.console import Console
    from rich.live import Live

    from ..evaluation.rendering import printable

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        for name, talk in talks.items():
            answer = talk.ask(text, seed, lambda piece: None)
            print(f"{name}: {answer.text.strip()}\n  ({summary_of(answer)})", flush=True)
        return
    shown: dict[str, object] = dict.fromkeys(talks, "")
    with Live(_columns(shown), console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        for name, talk in talks.items():

            def said(piece: str, name=name) -> None:
                shown[name] = f"{shown[name]}{printable(piece)}"
                live.update(_columns(shown))

            shown[name] = _coloured(talk.ask(text, seed, said))
            live.update(_columns(shown))


def summary_of(answer: Answer) -> str:
    """`12 tokens, return -3.21 nats`."""
    summary = f"{answer.length} tokens" + ("" if answer.ended else ", cut")
    rewards = [reward for _, reward in answer.pieces if reward is not None]
    return summary + (f", return {sum(rewards):+.2f} nats" if rewards else "")


def _columns(shown: dict[str, object]):
    from rich.table import Table

    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for name in shown:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*shown.values())
    return table


def _coloured(answer: Answer):
    from rich.text import Text

    from ..evaluation.rendering import printable
    from ..rewards.heatmap import colour, full_colour

    largest = full_colour([reward for _, reward in answer.pieces if reward is not None])
    text = Text()
    for piece, reward in answer.pieces or [(answer.text, None)]:
        shown = printable(piece).replace("\n", "↵\n")  # or the colour of a new line would be of nothing
        text.append(shown, style="" if reward is None else f"black on {colour(reward / largest)}")
    text.append(f"\n({summary_of(answer)})", style="dim")
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
        `FileNotFoundError`, `ValueError`: a model is not there or no language model, the prompt is too long, or no
            model can be told what `system` says.
    """
    from ..tasks.files import check_local_model
    from .console.failures import report

    paths = named(arguments.models, "models")
    for path in paths.values():
        check_local_model(path, "models")
    talks = {name: Talk(path, arguments) for name, path in paths.items()}
    without = [name for name, talk in talks.items() if talk.tokenizer.chat_template is None]
    if arguments.system is not None and without:
        if len(without) == len(talks):
            raise ValueError(
                "`system` is a message, and no model here has a chat template for it. Put it into the prompt."
            )
        print(f"Note: {', '.join(without)} without a chat template, and so without the message of `system`.")
    if arguments.prompt is not None:
        answers(talks, arguments.prompt, arguments.seed)
        return
    if sys.stdin.isatty():
        print("An empty line ends the talk, /reset begins it anew, and \\n is a new line.")
    for i, text in enumerate(prompts(list(talks.values()))):
        try:
            answers(talks, text, arguments.seed + i)
        except ValueError as error:  # such as a talk that no longer fits: the next may
            report("trl-irl chat", f"{error} `/reset` forgets the talk so far.")


make_parser, _run = command("chat", ChatArguments, __doc__, main, lambda arguments: "The talk is not kept.")


def run(argv: list[str] | None = None) -> int:
    """The command; models may stand first, without their key."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--models", *words]
    return _run(words)


if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
