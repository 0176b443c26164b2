"""Whether more or less of a metric is better: what `metric_for_best_model` and early stopping go by."""

import re

from transformers import TrainingArguments


_LESS = ("loss", "nll", "td_loss", "kl", "aux_loss", "self_bleu", "empty", "unscored", "runtime")
_MORE = (
    "log_pi_mean",
    "mean_token_accuracy",
    "entropy",  # of the policy: diversity, as self_bleu is the lack of it
    "accuracy",
    "accuracy_math",
    "answered",
    "reward",
    "reward_mean",
    "win_rate",
    "rouge1",
    "rouge2",
    "rougeL",
    "bleu",
    "chrf",
    "distinct",
    "distinct_2",
    "ended",
)
_GREATER_IS_BETTER = {**dict.fromkeys(_LESS, False), **dict.fromkeys(_MORE, True)}


def known_direction(metric: str) -> bool | None:
    """
    Whether a greater value is better; `None` where it is not known.

    Args:
        metric (`str`):
            A name as in `metric_for_best_model`, `eval_` before it or not, and then the name of one of several
            evaluation datasets or not: `nll`, `eval_nll`, `eval_easy_nll`.
    """
    name = metric.removeprefix("eval_")
    if re.search(r"(^|_)pass@\d+$", name):
        return True
    fitting = [known for known in _GREATER_IS_BETTER if name == known or name.endswith(f"_{known}")]
    return _GREATER_IS_BETTER[max(fitting, key=len)] if fitting else None


def set_direction(args: TrainingArguments) -> None:
    """
    Set `greater_is_better` where it is not set. By itself, Trainer takes everything that does not end in "loss" for
    better the greater it is. To be called before its `__post_init__`.

    Raises:
        `ValueError`: the metric's direction is not known, and `greater_is_better` is not set.
    """
    if args.metric_for_best_model is None or args.greater_is_better is not None:
        return
    args.greater_is_better = known_direction(args.metric_for_best_model)
    if args.greater_is_better is None:
        raise ValueError(
            f"`metric_for_best_model: {args.metric_for_best_model}` is a metric whose direction is not known here. "
            "Set `greater_is_better: true` or `greater_is_better: false`, or the wrong checkpoint would be kept."
        )
