import copy
import math
import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from accelerate import PartialState
from trl import SFTConfig

from ...soft_q.head import DEFAULT_LOGIT_BUFFER_MB
from ...soft_q.objectives import OBJECTIVES
from ...soft_q.terms import TERMINAL_VALUES
from ..runtime.best_metric import set_direction
from ..runtime.least_values import check_at_least


NAN_POLICIES = ("stop", "skip")
# Keys that some objectives have, and others refuse.
_OF_SOME_OBJECTIVES = sorted({key for kind in OBJECTIVES.values() for key in kind.uses})


@dataclass
class IRLConfig(SFTConfig):
    r"""
    Configuration class for the [`IRLTrainer`].

    [`IRLConfig`] inherits every parameter from [`~trl.SFTConfig`] and adds those of the inverse soft-Q objective
    ([arXiv 2409.01369](https://huggingface.co/papers/2409.01369)): a mean over the scored tokens of
    `-log pi(a|s) + lambda_td * r(s, a)^2 + lambda_kl * KL(pi || reference)`, with `r(s, a) = Q(s, a) - gamma * V(s')`.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"soft_q"`):
            What is minimised over the scored tokens. Of `"soft_q"`, `"value_consistency"` and `"squared_nll"` the
            second term, of weight `lambda_td`, is r^2, (V - gamma V')^2 and (log pi)^2. `"nll"` is maximum likelihood,
            `"dft"` TRL's loss of that name (arXiv 2508.05629), `"focal"` and `"z_loss"` have a key of their own below.
            See [`~soft_q.objectives`].
        lambda_td (`float`, *optional*, defaults to `0.1`):
            Weight of the squared implied reward (temporal-difference term); `1 / (4 * alpha)` in IQ-Learn. `0.0` is
            maximum likelihood, the loss of [`~trl.SFTTrainer`].
        td_scale (`float`, *optional*):
            What the squared implied reward is divided by, in nats squared. If `None`, its mean over the first step's
            tokens, but no less than 1: the term then starts at `lambda_td` or less, whatever the scale of the values.
            A pretrained model's can move by many nats from token to token, since likelihood does not hold them, and
            the term would drown the likelihood. `1.0` is the objective of the papers.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount factor, between 0 and 1.
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the exact KL to the reference policy over the vocabulary, in nats per token. The reference is
            `ref_model`, or the PEFT base with the adapter disabled, or a frozen copy of the model.
        terminal_value (`str`, *optional*, defaults to `"mask"`):
            Value of the state after a stop token: `"zero"`, or `"mask"` to leave the temporal-difference term of that
            token out. A zero pulls Q of the stop token, and with it all values, down to 0; measured, that made
            sampled completions end late (docs/results.md).
        focal_gamma (`float`, *optional*, defaults to `2.0`):
            `objective: focal`: the power of 1 - pi that a token's likelihood is multiplied with (arXiv 1708.02002).
        z_loss_weight (`float`, *optional*, defaults to `1e-4`):
            `objective: z_loss`: weight of V^2 (arXiv 2204.02311).
        td_target_grad (`bool`, *optional*, defaults to `True`):
            Whether gradients flow through the value of the next state. `False` gives a semi-gradient.

        > Parameters that control the schedule

        mle_warmup_steps (`int`, *optional*, defaults to `0`):
            Optimiser steps of maximum likelihood (`lambda_td = 0`) before the temporal-difference term comes in.
        lambda_td_warmup_steps (`int`, *optional*, defaults to `0`):
            Optimiser steps after those over which `lambda_td` rises linearly to its value. Evaluation always uses the
            final `lambda_td`, so that `eval_loss` is comparable between steps.

        > Parameters that control memory

        logit_buffer_mb (`float`, *optional*, defaults to `128`):
            Memory in MiB for the tile of logits at work and its working copy. The shape of the tile follows from it:
            the micro-batch's scored tokens (at most 4,096) by as many vocabulary columns as fit.

        > Parameters that control what happens when something goes wrong

        nan_policy (`str`, *optional*, defaults to `"stop"`):
            What a loss or gradient that is NaN or infinite, on any rank, does. `"stop"` ends the run with a
            `FloatingPointError` that gives the step and its metrics, before the weights change. `"skip"` leaves the
            weights as they are for that step, counts it in `skipped_steps`, and ends the run after ten such steps in
            a row. In fp16, gradients that overflow while the loss is finite are the loss scaler's business.
        save_on_signal (`bool`, *optional*, defaults to `False`):
            Whether SIGTERM makes training end after the current step with a checkpoint, from which
            `resume_from_checkpoint` goes on. All ranks act on a signal that any rank got.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `loss_type`: `"nll"` on every version of TRL, and no other value: the loss is this trainer's.
    > - `liger_kernel_config`: with `use_liger_kernel=True`, Liger's fused linear cross-entropy is off, since it would
    >   replace the forward that holds the soft-Q head.
    """

    # Parameters whose default values are overridden from SFTConfig
    loss_type: str = field(
        default="nll",
        metadata={"help": "Always 'nll': the loss is the inverse soft-Q objective.", "choices": ["nll"]},
    )

    # Parameters that control the objective
    objective: str = field(
        default="soft_q", metadata={"help": "What is minimised over the scored tokens.", "choices": list(OBJECTIVES)}
    )
    lambda_td: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the squared implied reward (temporal-difference term); 1 / (4 * alpha) in IQ-Learn. "
            "0.0 is maximum likelihood, the loss of SFTTrainer."
        },
    )
    td_scale: float | None = field(
        default=None,
        metadata={
            "help": "What the squared implied reward is divided by. If unset, its mean over the first step's tokens, "
            "but no less than 1, so that the term starts at lambda_td or less. 1.0 is the objective of the papers."
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount factor, between 0 and 1."})
    lambda_kl: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the exact KL to the reference policy over the vocabulary, in nats per token. The "
            "reference is `ref_model`, or the PEFT base with the adapter disabled, or a frozen copy of the model."
        },
    )
    terminal_value: str = field(
        default="mask",
        metadata={
            "help": "Value of the state after a stop token: 'zero', or 'mask' to leave the temporal-difference term "
            "of that token out.",
            "choices": list(TERMINAL_VALUES),
        },
    )
    focal_gamma: float = field(
        default=2.0,
        metadata={"help": "objective focal: the power of 1 - pi that weighs the likelihood of a token."},
    )
    z_loss_weight: float = field(default=1e-4, metadata={"help": "objective z_loss: weight of V^2."})
    td_target_grad: bool = field(
        default=True,
        metadata={"help": "Whether gradients flow through the value of the next state. False gives a semi-gradient."},
    )

    # Parameters that control the schedule
    mle_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Optimiser steps of maximum likelihood (lambda_td = 0) before the temporal-difference term."
        },
    )
    lambda_td_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Optimiser steps after those over which lambda_td rises linearly to its value. Evaluation always "
            "uses the final lambda_td."
        },
    )

    # Parameters that control memory
    logit_buffer_mb: float = field(
        default=DEFAULT_LOGIT_BUFFER_MB,
        metadata={"help": "Memory in MiB for the tile of logits at work and its working copy."},
    )

    # Parameters that control what happens when something goes wrong
    nan_policy: str = field(
        default="stop",
        metadata={
            "help": "What a NaN or infinite loss or gradient does: 'stop' ends the run before the weights change, "
            "'skip' leaves that step out and counts it in skipped_steps.",
            "choices": list(NAN_POLICIES),
        },
    )
    save_on_signal: bool = field(
        default=False,
        metadata={"help": "Whether SIGTERM makes training end after the current step with a checkpoint."},
    )

    def __post_init__(self):
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
            # transformers 5.23 passes `ddp_timeout` on for accelerators only; it then takes the group made here.
            PartialState(cpu=True, timeout=timedelta(seconds=self.ddp_timeout))
        set_direction(self)
        super().__post_init__()
        if self.loss_type != "nll":
            raise ValueError(
                f"`loss_type={self.loss_type!r}` would replace the inverse soft-Q objective. Leave `loss_type` unset "
                "(for maximum likelihood set `lambda_td=0`), or use `SFTTrainer` for that loss."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor={self.label_smoothing_factor}` is not part of the inverse soft-Q objective: "
                "it would move the target of `nll` away from the expert's action. Set it to 0."
            )
        check_at_least(self)
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ValueError(
                f"`num_train_epochs={self.num_train_epochs}` with `max_steps={self.max_steps}` trains for no step. "
                "Set one of them above 0."
            )
        if self.save_strategy == "steps" and not self.save_steps > 0:
            raise ValueError(
                f"`save_steps={self.save_steps}` with `save_strategy='steps'` saves nothing. Set it above 0, or "
                "`save_strategy='no'`."
            )
        self._check_objective()
        if not self.lambda_td >= 0:
            raise ValueError(
                f"`lambda_td={self.lambda_td}` would reward large temporal-difference errors: it is the weight "
                "1 / (4 alpha) of a penalty on the squared implied reward. Set it to 0 (maximum likelihood) or more; "
                "0.1 is a good start."
            )
        if math.isinf(self.lambda_td) or math.isinf(self.lambda_kl):
            raise ValueError(
                f"`lambda_td={self.lambda_td}` and `lambda_kl={self.lambda_kl}` must be finite: they are weights in "
                "the loss. 0.1 is a good start."
            )
        if self.td_scale is not None and not 0 < self.td_scale < math.inf:
            raise ValueError(
                f"`td_scale={self.td_scale}` must be above 0 and finite: the squared reward is divided by it. "
                "Leave it unset to have it measured, or set 1.0 for the objective of the papers."
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(
                f"`gamma={self.gamma}` is not a discount factor: it weighs the value of the next state in "
                "r = Q - gamma * V', from 0 (the next state does not matter) to 1 (undiscounted)."
            )
        if not self.lambda_kl >= 0:
            raise ValueError(
                f"`lambda_kl={self.lambda_kl}` would push the policy away from its reference. Set it to 0 (no "
                "reference) or more."
            )
        if self.terminal_value not in TERMINAL_VALUES:
            raise ValueError(
                f"`terminal_value={self.terminal_value!r}` is unknown. It says what the state after a stop token is "
                "worth: 'zero', or 'mask' to leave the temporal-difference term of that token out."
            )
        for name, meaning in (
            ("mle_warmup_steps", "the number of optimiser steps of maximum likelihood before the TD term"),
            ("lambda_td_warmup_steps", "the number of optimiser steps over which lambda_td rises to its value"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}={getattr(self, name)}` must be 0 or more: it is {meaning}.")
        if not self.logit_buffer_mb > 0:
            raise ValueError(
                f"`logit_buffer_mb={self.logit_buffer_mb}` must be positive: it is the memory in MiB for one tile of "
                "logits. 128 suits most models."
            )
        if self.nan_policy not in NAN_POLICIES:
            raise ValueError(
                f"`nan_policy={self.nan_policy!r}` is unknown. It says what a NaN or infinite loss does: 'stop' ends "
                "the run before the weights change, 'skip' leaves that step out."
            )
        if "token" in (self.model_init_kwargs or {}):
            raise ValueError(
                "`model_init_kwargs` holds a `token`, which would be written to logs and saved beside the model. Set "
                "it in the environment as HF_TOKEN, or log in with `hf auth login`."
            )
        if self.use_liger_kernel:
            # Liger would patch `model.forward` when training starts. TRL >= 1.13 turns this off itself; ours can go
            # with TRL 1.12.
            self.liger_kernel_config = {**(self.liger_kernel_config or {}), "fused_linear_cross_entropy": False}

    def _check_objective(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"`objective={self.objective!r}` is unknown; there are {', '.join(OBJECTIVES)}.")
        for name in ("focal_gamma", "z_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}={getattr(self, name)}` is out of range. Set it to 0 or more, and finite.")
        used = OBJECTIVES[self.objective].uses
        fields_of_it = {name: self.__dataclass_fields__[name].default for name in _OF_SOME_OBJECTIVES}
        for name, default in fields_of_it.items():
            value = getattr(self, name)
            if name not in used and value != default and not (name == "lambda_td" and value == 0):
                those = ", ".join(key for key, kind in OBJECTIVES.items() if name in kind.uses)
                raise ValueError(
                    f"`{name}={value}` means nothing to `objective={self.objective!r}`. Unset it, or set `objective` "
                    f"to one that has it: {those}."
                )
        if "lambda_td" not in used:
            self.lambda_td = 0.0  # what the schedule and the logs say

    def __getstate__(self) -> dict:
        # Trainer pickles its arguments beside the model (training_args.bin): without the Hub token.
        return {**self.__dict__, "hub_token": None}

    def __copy__(self) -> "IRLConfig":  # which goes by the state of a pickle, and is none
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict) -> "IRLConfig":
        new = memo[id(self)] = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def lambda_td_at(self, step: int) -> float:
        """
        Weight of the temporal-difference term during optimiser step `step` (counted from 0): 0 for `mle_warmup_steps`,
        then rising to `lambda_td`, which it reaches on the last of `lambda_td_warmup_steps`.
        """
        step -= self.mle_warmup_steps
        if step < 0:
            return 0.0
        if step < self.lambda_td_warmup_steps:
            return self.lambda_td * (step + 1) / self.lambda_td_warmup_steps
        return self.lambda_td
