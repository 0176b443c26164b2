"""The keys of an objective: which it is, how strong its terms are, and over which steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..._fields import check_kinds
from ...soft_q.objectives import CENTERS, OBJECTIVES, keys_of, kinds_of, objective_of
from ...soft_q.objectives.per_token import ORIGINS, SCHEDULE
from ...soft_q.statistics import GEM_FORMS
from ...soft_q.terms import TERMINAL_VALUES


# Keys that some objectives have, and others refuse.
_OF_SOME = sorted({key for kind in OBJECTIVES.values() for key in kind.uses})


@dataclass
class ObjectiveArguments:
    r"""
    What [`IRLConfig`] has to say about the loss: a mean over the scored tokens of
    `-log pi(a|s) + lambda_td * r(s, a)^2 + lambda_kl * KL(pi || reference)`, with `r(s, a) = Q(s, a) - gamma * V(s')`,
    or what another `objective` puts in place of its parts.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"soft_q"`):
            What is minimised over the scored tokens. Of `"soft_q"`, `"value_consistency"` and `"squared_nll"` the
            second term, of weight `lambda_td`, is r^2, (V - gamma V')^2 and (log pi)^2. `"nll"` is maximum likelihood,
            `"dft"` TRL's loss of that name (arXiv 2508.05629); `"gem"` (2408.16673), `"entropy"`,
            `"label_smoothing"`, `"focal"` and `"z_loss"` have keys of their own below. Several joined by `+`, such as
            `"value_consistency+z_loss"`, are the penalties of all on one likelihood; `"module:Class"` is your own. See
            [`~soft_q.objectives`].
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
        td_target_grad (`bool`, *optional*, defaults to `True`):
            Whether gradients flow through the value of the next state. `False` gives a semi-gradient.
        td_weights (`list[float]`, *optional*, defaults to `[1.0, 1.0, 1.0]`):
            `objective: soft_q`: weights of the three terms of r^2: (log pi)^2, 2 log pi (V - gamma V') and
            (V - gamma V')^2.
        value_temperature (`float`, *optional*, defaults to `1.0`):
            `objective: soft_q`: temperature of the values in the reward, V = b logsumexp(Q / b); joined by `+`, in the
            squares of all parts.
        value_origin (`str`, *optional*, defaults to `"zero"`):
            `objective: soft_q`, `value_consistency`, `z_loss`: what Q and V count from in the reward, (V - gamma V')^2
            and V^2. `"reference"`: from the V of the reference at the same state, which is that of `lambda_kl`: values
            are held where the reference has them, and log pi is what it was. For a pretrained model, at the price of a
            forward of the reference.
        gem_beta (`float`, *optional*, defaults to `0.7`), gem_form (`str`, *optional*, defaults to `"linear"`):
            `objective: gem`: temperature of the policy's own distribution, above 0, and the form of the game,
            `"linear"` or `"log_sigmoid"` (arXiv 2408.16673).
        entropy_weight (`float`, *optional*, defaults to `0.1`):
            `objective: entropy`: weight of the bonus for the policy's entropy, in nats.
        label_smoothing_weight (`float`, *optional*, defaults to `0.1`):
            `objective: label_smoothing`: part of the target that goes to the whole vocabulary, from 0 to 1.
        focal_gamma (`float`, *optional*, defaults to `2.0`):
            `objective: focal`: the power of 1 - pi that a token's likelihood is multiplied with (arXiv 1708.02002).
        z_loss_weight (`float`, *optional*, defaults to `1e-4`):
            `objective: z_loss`: weight of (V - center)^2 (arXiv 2204.02311).
        z_loss_center (`str`, *optional*, defaults to `"zero"`):
            `objective: z_loss`: what V is held near; `"measured"` is its mean over the first step's tokens (before
            that step, in an evaluation, it is 0, as `td_scale` is 1).

        > Parameters that control the schedule; below 1 each is a share of all steps, as `warmup_steps` is

        mle_warmup_steps (`int` or `float`, *optional*, defaults to `0`):
            Optimiser steps of maximum likelihood (`lambda_td = 0`) before the temporal-difference term comes in.
        lambda_td_warmup_steps (`int` or `float`, *optional*, defaults to `0`):
            Optimiser steps after those over which `lambda_td` rises linearly to its value. Evaluation always uses the
            full `lambda_td`, so that `eval_loss` is comparable between steps.
        lambda_td_decay_steps (`int` or `float`, *optional*, defaults to `0`):
            Optimiser steps after those over which it falls linearly to 0, where it stays; 0: it does not fall.
    """

    objective: str = field(
        default="soft_q",
        metadata={
            "help": f"What is minimised over the scored tokens: {', '.join(OBJECTIVES)}, several with +, or "
            "module:Class of your own."
        },
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
    td_target_grad: bool = field(
        default=True,
        metadata={"help": "Whether gradients flow through the value of the next state. False gives a semi-gradient."},
    )
    td_weights: list[float] = field(
        default_factory=lambda: [1.0, 1.0, 1.0],
        metadata={"help": "objective soft_q: weights of (log pi)^2, 2 log pi (V - gamma V') and (V - gamma V')^2."},
    )
    value_temperature: float = field(
        default=1.0, metadata={"help": "objective soft_q: temperature of the values in the reward."}
    )
    value_origin: str = field(
        default="zero",
        metadata={
            "help": "objectives soft_q, value_consistency and z_loss: what Q and V count from, zero or the V of the "
            "reference at the same state.",
            "choices": list(ORIGINS),
        },
    )
    gem_beta: float = field(default=0.7, metadata={"help": "objective gem: temperature of its own distribution."})
    gem_form: str = field(
        default="linear", metadata={"help": "objective gem: the form of its game.", "choices": list(GEM_FORMS)}
    )
    entropy_weight: float = field(
        default=0.1, metadata={"help": "objective entropy: weight of the bonus for the policy's entropy."}
    )
    label_smoothing_weight: float = field(
        default=0.1,
        metadata={"help": "objective label_smoothing: part of the target that goes to the whole vocabulary."},
    )
    focal_gamma: float = field(
        default=2.0,
        metadata={"help": "objective focal: the power of 1 - pi that weighs the likelihood of a token."},
    )
    z_loss_weight: float = field(default=1e-4, metadata={"help": "objective z_loss: weight of (V - center)^2."})
    z_loss_center: str = field(
        default="zero",
        metadata={
            "help": "objective z_loss: what V is held near, 0 or its mean over the first step's tokens.",
            "choices": list(CENTERS),
        },
    )
    mle_warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Optimiser steps of maximum likelihood (lambda_td = 0) before the temporal-difference term; below "
            "1 a share of all."
        },
    )
    lambda_td_warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Optimiser steps after those over which lambda_td rises linearly to its value; below 1 a share of "
            "all. Evaluation always uses the full lambda_td."
        },
    )
    lambda_td_decay_steps: float = field(
        default=0,
        metadata={
            "help": "Optimiser steps after those over which lambda_td falls linearly to 0; below 1 a share of all; 0: "
            "it does not."
        },
    )

    def strengths_told(self) -> list[str]:
        """The keys of some objective alone that are not the defaults: not those of the schedule or the reward."""
        fresh, common = ObjectiveArguments(), (*SCHEDULE, "gamma", "td_target_grad")
        return [key for key in _OF_SOME if key not in common and getattr(self, key) != getattr(fresh, key)]

    def check_objective(self) -> None:
        """
        Raises:
            `ValueError`: a key of the objective is out of range, or means nothing to it.
        """
        if not isinstance(self.objective, str):
            raise ValueError(
                f"`objective={self.objective!r}` is no name; several are written in one, such as 'gem+soft_q'."
            )
        try:
            self.td_weights = [float(weight) for weight in self.td_weights]
        except (TypeError, ValueError):
            raise ValueError(f"`td_weights={self.td_weights!r}` must be three finite numbers.") from None
        try:
            kinds = kinds_of(self.objective)
        except ValueError as error:
            raise ValueError(f"`objective={self.objective!r}` is unknown: {error}") from None
        check_kinds(self, ObjectiveArguments)
        self._check_strengths()
        self._check_schedule()
        try:
            objective_of(self.objective, self)
        except ValueError as error:
            raise ValueError(f"`objective={self.objective!r}` cannot be: {error}") from None
        used = {key for kind in kinds for key in keys_of(kind)}
        self._check_used(used)
        self._check_origin(used)

    def _check_used(self, used: set[str]) -> None:
        fresh = ObjectiveArguments()
        for name in _OF_SOME:
            value = getattr(self, name)
            if name not in used and value != getattr(fresh, name) and not (name == "lambda_td" and value == 0):
                those = ", ".join(key for key, kind in OBJECTIVES.items() if name in kind.uses)
                raise ValueError(
                    f"`{name}={value}` means nothing to `objective={self.objective!r}`. Unset it (on the command line "
                    f"`--{name} null`), or set `objective` to one that has it: {those}."
                )

    @property
    def lambda_td_in_use(self) -> float:
        """
        `lambda_td`, or 0 where the objective has no such term: the field itself stays what it was, so that a copy of
        the arguments with another objective has it.
        """
        return self.lambda_td if any("lambda_td" in keys_of(kind) for kind in kinds_of(self.objective)) else 0.0

    def _check_origin(self, used: set[str]) -> None:
        if self.value_origin == "zero":
            return
        weights = [name for name in ("lambda_td", "z_loss_weight") if name in used]
        if all(getattr(self, name) == 0 for name in weights):
            zeros = " and ".join(f"`{name}=0`" for name in weights)
            raise ValueError(
                f"`value_origin={self.value_origin!r}` with {zeros}: nothing looks at a value, and each step would "
                "run a reference for it. Unset `value_origin`."
            )

    def _check_strengths(self) -> None:
        if not self.lambda_td >= 0:
            raise ValueError(
                f"`lambda_td={self.lambda_td}` would reward large temporal-difference errors: it is the weight "
                "1 / (4 alpha) of a penalty on the squared implied reward. Set it to 0 (maximum likelihood) or more; "
                "0.1 is a good start."
            )
        if not self.lambda_kl >= 0:
            raise ValueError(
                f"`lambda_kl={self.lambda_kl}` would push the policy away from its reference. Set it to 0 (no "
                "reference) or more."
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
        if self.terminal_value not in TERMINAL_VALUES:
            raise ValueError(
                f"`terminal_value={self.terminal_value!r}` is unknown. It says what the state after a stop token is "
                "worth: 'zero', or 'mask' to leave the temporal-difference term of that token out."
            )
        for name in ("focal_gamma", "z_loss_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}={getattr(self, name)}` is out of range. Set it to 0 or more, and finite.")
        for name in ("gem_beta", "value_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}={getattr(self, name)}` is no temperature. Set it above 0, and finite.")
        if not 0 <= self.label_smoothing_weight <= 1:
            raise ValueError(
                f"`label_smoothing_weight={self.label_smoothing_weight}` is out of range: it is the part of the "
                "target that goes to the whole vocabulary, from 0 to 1."
            )
        for name, known in (("gem_form", GEM_FORMS), ("z_loss_center", CENTERS), ("value_origin", ORIGINS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}={getattr(self, name)!r}` is unknown; there are {', '.join(known)}.")
        weights = self.td_weights
        if len(weights) != 3 or not all(map(math.isfinite, weights)):
            raise ValueError(
                f"`td_weights={weights}` must be three finite numbers: the weights of (log pi)^2, "
                "2 log pi (V - gamma V') and (V - gamma V')^2. [1, 1, 1] is r^2."
            )
        first, second, third = weights
        if first < 0 or third < 0 or second**2 > first * third * (1 + 1e-9):
            raise ValueError(
                f"`td_weights={weights}` make a term without a lowest value, and training would run away: the first "
                "and the third must be 0 or more, and the second squared no more than their product."
            )

    def _check_schedule(self) -> None:
        for name, meaning in (
            ("mle_warmup_steps", "the number of optimiser steps of maximum likelihood before the TD term"),
            ("lambda_td_warmup_steps", "the number of optimiser steps over which lambda_td rises to its value"),
            ("lambda_td_decay_steps", "the number of optimiser steps over which lambda_td then falls to 0"),
        ):
            value = getattr(self, name)
            if not (0 <= value < 1 or (value > 0 and value % 1 == 0)):
                raise ValueError(
                    f"`{name}={value}` must be 0 or more, and whole, or below 1 as a share of all steps: it is "
                    f"{meaning}."
                )
            if value >= 1 or value == 0:
                setattr(self, name, int(value))
        first, rise = self.mle_warmup_steps, self.lambda_td_warmup_steps
        if first < 1 and rise < 1 and first + rise > 1:
            raise ValueError(
                f"`mle_warmup_steps={first}` and `lambda_td_warmup_steps={rise}` are shares of one run, and together "
                "they are more than all of it. Lower them."
            )

    def schedule_of(self, max_steps: int | None = None) -> tuple[int, int, int]:
        """The warm-up by likelihood, the rise of `lambda_td` and its fall, in steps of a run of `max_steps`."""
        told = (self.mle_warmup_steps, self.lambda_td_warmup_steps, self.lambda_td_decay_steps)
        if max_steps is None and any(0 < value < 1 for value in told):
            raise ValueError("A schedule in shares of a run needs the run's `max_steps`.")
        return tuple(math.ceil(value * max_steps) if 0 < value < 1 else value for value in told)

    def lambda_td_at(self, step: int, max_steps: int | None = None) -> float:
        """
        Weight of the temporal-difference term during optimiser step `step` (counted from 0) of `max_steps`: 0 for
        `mle_warmup_steps`, then rising to `lambda_td`, which it reaches on the last of `lambda_td_warmup_steps`, then
        falling to 0, which it reaches `lambda_td_decay_steps` later.
        """
        first, rise, fall = self.schedule_of(max_steps)
        step -= first
        if step < 0:
            return 0.0
        if step < rise:
            return self.lambda_td_in_use * (step + 1) / rise
        if not fall:
            return self.lambda_td_in_use
        return self.lambda_td_in_use * max(0.0, 1 - (step - max(rise - 1, 0)) / fall)
