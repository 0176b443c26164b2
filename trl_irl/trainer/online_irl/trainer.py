"""Online inverse reinforcement learning: [`IRLTrainer`] on expert rows and on the policy's own completions."""

from __future__ import annotations

from ...soft_q.objectives import OnlineInverseSoftQ
from ..irl.trainer import IRLTrainer
from ..runtime.models import default_output_dir
from ..runtime.row_checks import check_not_empty
from ..runtime.vllm_arguments import check_vllm
from .config import OnlineIRLConfig
from .online_training import OnlineTraining


class OnlineIRLTrainer(OnlineTraining, IRLTrainer):
    """
    [`IRLTrainer`] that also learns from the policy's own completions (online IQ-Learn, arXiv 2409.01369 and
    2106.12142): see [`~soft_q.objectives.online`]. Every optimiser step samples completions for the prompts of all its
    rows before its first backward, from the policy as it then is.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_irl import OnlineIRLConfig, OnlineIRLTrainer

    >>> trainer = OnlineIRLTrainer(
    ...     model="outputs/tldr/sft",
    ...     args=OnlineIRLConfig("outputs/tldr/online_irl", max_completion_length=53),
    ...     train_dataset=load_dataset("trl-lib/tldr", split="train"),
    ... )
    >>> trainer.train()
    ```

    Overridden are, beside what [`IRLTrainer`] overrides, `training_step`, which adds the policy's rows to a batch
    after `get_batch_samples` has noted the prompts of the step, and `_load_rng_state`, since a replay buffer is saved
    with the random states and read with them.

    Beside the metrics of [`IRLTrainer`], which are of the expert's tokens, it logs those of the policy's as
    `policy_reward_mean`, `policy_v_mean`, `policy_td_loss`, `policy_nll`; `reward_gap`, the expert's mean reward minus
    the policy's; `expert_length`, `policy_length` (tokens), `expert_ended` and `policy_ended` (shares) of the batches'
    rows and of the fresh completions; and the seconds a step spends in `time_generation` and beside it in
    `time_update`.

    Args:
        model, args and so on: as for [`IRLTrainer`], `args` being an [`OnlineIRLConfig`] (if `None`, the defaults,
            with `output_dir` named after the model), `train_dataset` one of prompts and completions.

    Raises:
        `TypeError`: `args` is not an [`OnlineIRLConfig`].
        `ValueError`: the data has no prompts, or a prompt leaves no room for `max_completion_length`.
        `GenerationError`: for 20 generations no completion ended, or all were empty.
    """

    _tag_names = ["trl", "online-irl"]
    _answers = True
    _name = "online IRL (online IQ-Learn)"

    def __init__(
        self, model, args: OnlineIRLConfig | None = None, data_collator=None, train_dataset=None, *others, **kwargs
    ):
        if args is None:
            args = OnlineIRLConfig(default_output_dir(model, "online-IRL"))
        if not isinstance(args, OnlineIRLConfig):
            raise TypeError(f"`args` is a `{type(args).__name__}`. Build an `OnlineIRLConfig`.")
        check_vllm(args)
        check_prompts(train_dataset)
        check_objective(kwargs.get("objective"))
        super().__init__(model, args, data_collator, train_dataset, *others, **kwargs)
        self._begin_online()


def check_prompts(dataset) -> None:
    """
    Raises:
        `ValueError`: there are no prompts to sample completions of.
    """
    if dataset is None:
        return
    check_not_empty(dataset, "train")
    columns = set(dataset.column_names or next(iter(dataset)))
    if not ({"prompt", "completion"} <= columns or {"input_ids", "labels"} <= columns):
        raise ValueError(
            f"Online IRL samples a completion of each row's prompt, and this data has the columns "
            f"{', '.join(sorted(columns))}: no `prompt` and `completion`. Split the text into both, or train offline "
            "with `IRLTrainer`."
        )


def check_objective(objective) -> None:
    """
    Raises:
        `TypeError`: it does not know the policy's rows.
    """
    if not isinstance(objective, OnlineInverseSoftQ | None):
        raise TypeError(
            f"`objective` is a `{type(objective).__name__}`, which does not know the policy's rows. Pass an "
            "`OnlineInverseSoftQ`, leave it out, or train with `IRLTrainer`."
        )
