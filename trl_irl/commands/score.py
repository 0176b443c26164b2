"""
Score completions with the reward inside a model: returns, rewards of every token, and a page that shows them.

```bash
trl-irl score --model outputs/gsm8k/irl_full --dataset_name completions.jsonl --output rewards.parquet \
    --html rewards.html
```
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..rewards.arguments import check_discount
from ..tasks.arguments import BadRowArguments, EndArguments, TaskArguments
from ..tasks.splits import load_split
from .console.command import command, goes_on_from


_SUFFIXES = (".parquet", ".jsonl")
_KINDS = ("soft_q", "log_ratio", "advantage", "preference")
_OF_REWARD = ("kind", "ref_model", "gamma", "terminal_value", "dtype")


@dataclass
class ScoreArguments(BadRowArguments, EndArguments, TaskArguments):
    """
    Arguments of the `score` command beside those of the task.

    Args:
        model (`str`):
            Folder, Hub id or adapter whose reward it is.
        kind (`str`, *optional*, defaults to `"soft_q"`), ref_model (`str`, *optional*), gamma (`float`, *optional*),
        terminal_value (`str`, *optional*), batch_size (`int`, *optional*, defaults to `8`), dtype (`str`, *optional*):
            See [`SoftQReward`]. `"preference"` is the number of a reward model (of `trl reward`), see
            [`PreferenceReward`].
        split (`str`, *optional*, defaults to `"train"`)
        num_rows (`int`, *optional*):
            Only the first so many rows.
        completion_columns (`list[str]`, *optional*):
            Columns that hold completions, each one or a list of them; a dot reaches into a nested one, such as
            `175b_verification.solution`. If unset, `completions`, both sides of preference pairs, or `completion`.
        cut (`bool`, *optional*, defaults to `False`):
            Whether all completions were cut at a limit, so that no EOS follows them. Otherwise a row's or a
            completion's own `cut`, `ended` or `finish_reason` says so.
        output (`str`, *optional*, defaults to `"outputs/rewards.parquet"`):
            A Parquet or JSONL file: one row per completion, with the columns of the row that it is from. A run that
            was killed goes on where it was.
        html (`str`, *optional*):
            A page to write, with the tokens of the first `html_rows` completions coloured by reward.
        html_rows (`int`, *optional*, defaults to `100`)
    """

    model: str | None = field(default=None, metadata={"help": "Folder, Hub id or adapter whose reward it is."})
    kind: str = field(
        default="soft_q",
        metadata={
            "help": "Which reward of the model is read.",
            "choices": ["soft_q", "log_ratio", "advantage", "preference"],
        },
    )
    ref_model: str | None = field(default=None, metadata={"help": "The reference of log_ratio."})
    gamma: float | None = field(default=None, metadata={"help": "Discount; the model's own if unset."})
    terminal_value: str | None = field(
        default=None, metadata={"help": "The state after a stop token: zero or mask; the model's own if unset."}
    )
    split: str = field(default="train", metadata={"help": "The split to score."})
    num_rows: int | None = field(default=None, metadata={"help": "Only the first so many rows."})
    completion_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns that hold completions, one or a list of them each."}
    )
    cut: bool = field(default=False, metadata={"help": "All completions were cut: no EOS follows them."})
    batch_size: int = field(default=8, metadata={"help": "Completions at a time."})
    dtype: str = field(
        default="auto",
        metadata={"help": "The model's data type.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    output: str = field(default="outputs/rewards.parquet", metadata={"help": "A .parquet or .jsonl file."})
    html: str | None = field(default=None, metadata={"help": "A page with tokens coloured by reward."})
    html_rows: int = field(default=100, metadata={"help": "Completions on that page."})

    def __post_init__(self):
        self.task_data(needs_target=False)  # is the task one?
        if self.model is None:
            raise ValueError("No model. Set `model` to a folder, a Hub id or an adapter.")
        for name in ("num_rows", "batch_size", "html_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}: {getattr(self, name)}` is out of range. Set it to 1 or more.")
        if Path(self.output).suffix not in _SUFFIXES:
            raise ValueError(
                f"`output: {self.output}` is neither of {', '.join(_SUFFIXES)}: name a file of that kind."
            )
        if self.html is not None and Path(self.html).resolve() == Path(self.output).resolve():
            raise ValueError(
                f"`html: {self.html}` is the file of `output` too: the page would replace the numbers. Name another."
            )
        check_discount(self.gamma)
        if self.kind == "preference":
            for key in ("ref_model", "gamma", "terminal_value", "html"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"`{key}` is of token rewards, and `kind: preference` gives one number. Unset it."
                    )
        if self.terminal_value not in (None, "zero", "mask"):
            raise ValueError(f"`terminal_value: {self.terminal_value}` must be zero or mask.")


def soft_q(arguments: ScoreArguments, tokenizer):
    """What gives completions the numbers of a [`SoftQReward`]."""
    from ..rewards import SoftQReward
    from ..rewards.token_pieces import token_pieces
    from ..text.encode import asked

    options = {key: getattr(arguments, key) for key in (*_OF_REWARD, "batch_size")}
    reward = SoftQReward(arguments.model, tokenizer, **options)

    def numbers(rows: list) -> list[dict]:
        prompts, texts = [asked(one.row) for one in rows], [one.given.text for one in rows]
        return [
            {
                **{name: one.number(name) for name in ("sum", "discounted", "mean")},
                "log_likelihood": one.log_likelihood,
                "initial_value": one.initial_value if len(one.v) else None,
                "tokens": token_pieces(reward.tokenizer, one.token_ids),
                **{name: getattr(one, name).tolist() for name in ("token_ids", "rewards", "has_reward", "q", "v")},
            }
            for one in reward.score(prompts, texts, ended=[one.ended for one in rows])
        ]

    return numbers


def preference(arguments: ScoreArguments, tokenizer):
    """What gives completions the number of a [`PreferenceReward`]."""
    from ..rewards import PreferenceReward
    from ..text.encode import asked

    reward = PreferenceReward(arguments.model, arguments.batch_size, arguments.dtype, tokenizer)

    def numbers(rows: list) -> list[dict]:
        prompts, texts = [asked(one.row) for one in rows], [one.given.text for one in rows]
        texts = [getattr(text, "messages", text) for text in texts]
        return [{"reward": x} for x in reward.score(prompts, texts, ended=[one.ended for one in rows])]

    return numbers


def fits(arguments: ScoreArguments, tokenizer):
    """What raises where a row's completions do not fit into the model's context, or cannot be written."""
    from ..evaluation.loaded_models import context_of
    from ..rewards.adapters import config_of
    from ..text.encode import encode_row
    from ..text.messages import naming_row

    context, apart = context_of(arguments.model), config_of(arguments.model).is_encoder_decoder

    def check(rows: list) -> None:
        where = f"Row {rows[0].number} of `{arguments.split}`"
        for one in rows:
            with naming_row(where):
                encoded = encode_row(tokenizer, one.whole, one.ended, apart)
            length = encoded.needs(apart)
            if context is not None and length > context:
                raise ValueError(
                    f"{where} has {length} tokens with its `{one.given.source}`, and the context of "
                    f"{arguments.model} is {context}. Shorten it."
                )

    return check


def main(arguments: ScoreArguments) -> None:
    """Score the rows and write them."""
    import os
    import shutil

    from ..evaluation.loaded_models import weights_of
    from ..evaluation.scored_completions import read, score_all, summary, with_other_columns
    from ..rewards.adapters import tokenizer_of
    from ..rewards.frozen_models import check_language_model
    from ..rewards.heatmap import write_heatmap
    from ..rewards.preference_reward import check_one_label
    from ..tasks.files import check_local_model, check_writable, remove_if_empty
    from ..tasks.rows import BadRows
    from ..text.encode import check_eos

    for key in ("model", "ref_model"):
        if getattr(arguments, key) is not None:
            check_local_model(getattr(arguments, key), key)
            if arguments.kind == "preference":
                check_one_label(getattr(arguments, key), key)
            else:
                check_language_model(getattr(arguments, key), key, encoder_decoder=True)
    output = Path(arguments.output)
    for key in ("output", "html"):
        if getattr(arguments, key) is not None:
            if Path(getattr(arguments, key)).is_dir():
                raise ValueError(f"`{key}: {getattr(arguments, key)}` is a folder. Name a file in it.")
            check_writable(str(Path(getattr(arguments, key)).parent), key)
    split = load_split(arguments.task_data(needs_target=False), arguments.split, arguments.num_rows)
    bad = BadRows(arguments.on_bad_row, f"`{arguments.split}`")
    tokenizer = tokenizer_of(arguments.model, eos_token=arguments.eos_token)
    check_eos(tokenizer)
    rows = read(arguments, split, bad, fits(arguments, tokenizer))
    left_out = bad.tell(len(split))
    decisive = {key: getattr(arguments, key) for key in ("model", "eos_token", *_OF_REWARD)}
    decisive |= {"format": 5, "weights": [weights_of(arguments.model), weights_of(arguments.ref_model or "")]}
    parts = output.with_name(f"{output.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        make = preference if arguments.kind == "preference" else soft_q
        scored = score_all(decisive, rows, parts, lambda: make(arguments, tokenizer))
    finally:
        remove_if_empty(str(parts))  # nothing was scored
    replaced = " (in place of an earlier one)" if output.exists() else ""
    unfinished = output.with_name(f"{output.name}.part")
    table, renamed = with_other_columns(scored, split)
    table.to_parquet(unfinished) if output.suffix == ".parquet" else table.to_json(unfinished)
    os.replace(unfinished, output)
    if arguments.html is not None:
        title = f"{arguments.kind} rewards of {arguments.model}"
        write_heatmap(scored[: arguments.html_rows], Path(arguments.html), title)
    shutil.rmtree(parts, ignore_errors=True)  # not before all is written
    first, *more = summary(scored, "reward" if arguments.kind == "preference" else "sum")
    print("\n".join([f"{first}: {output}{replaced}", *more]))
    if renamed:
        print(f"Note: the columns {', '.join(renamed)} of the data have names of this command's, and are `input_...`.")
    if left_out:
        print(f"Note: {left_out}")
    if arguments.html is not None:
        print(f"Page: {arguments.html}")


def _kept(arguments: ScoreArguments) -> str:
    return goes_on_from(f"{arguments.output}.parts", "scored")


make_parser, run = command("score", ScoreArguments, __doc__, main, _kept)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
