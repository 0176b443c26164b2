"""Objectives that are a likelihood of each token and penalties on it: all that come with this package, but one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, ClassVar

import torch

from .objective import Objective


if TYPE_CHECKING:
    from ..head import SoftQOutput
    from ..terms import SoftQTerms

# Keys of an objective with a term that `lambda_td` weighs.
SCHEDULE = (
    "lambda_td",
    "td_scale",
    "mle_warmup_steps",
    "lambda_td_warmup_steps",
    "lambda_td_decay_steps",
    "terminal_value",
)


ORIGINS = ("zero", "reference")


def of_values(objective: Objective) -> str:
    """For a formula: whose values it has, if not the plain ones."""
    return ", V from the reference's" if objective.value_origin == "reference" else ""


@dataclass(frozen=True)
class PerToken(Objective):
    """
    L = sum over scored tokens of  likelihood_t + penalty_t + lambda_td * x_t^2 + lambda_kl * KL(pi || reference)

    where a subclass says what likelihood (-log pi(a_t|s_t) if it says nothing), penalty and x_t^2 are. The trainer
    divides lambda_td by `td_scale`, the mean of x_t^2 before training.

    Values count from 0 or, with the `value_origin` "reference", from those of a reference: V - V_ref and Q - V_ref
    stand for V and Q, which leaves log pi as it is, and r becomes log pi + (V - V_ref) - gamma (V' - V_ref'). That is
    r shaped by the potential V_ref, on which no optimal policy depends ("Policy invariance under reward
    transformations", Ng, Harada and Russell 1999). Likelihood does not hold the values of a pretrained model, and they
    may move by many nats from token to token; counted from its own, they begin at 0.

    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL, where the output has one.

    Attributes:
        title, says, adds (`str`): its name, its likelihood and what it adds to that, in words and symbols.
    """

    lambda_kl: float = 0.0
    title: ClassVar[str] = ""
    says: ClassVar[str] = "nll"
    adds: ClassVar[str] = ""

    def likelihood(self, terms: SoftQTerms, output: SoftQOutput) -> torch.Tensor:
        """Of the shape `(batch, positions)`, in nats; 0 where nothing is scored."""
        return terms.nll

    def penalty(self, terms: SoftQTerms, output: SoftQOutput) -> torch.Tensor | None:
        """Of the shape `(batch, positions)`, with its weight; 0 where nothing is scored."""
        return None

    def squares(self, terms: SoftQTerms, output: SoftQOutput) -> tuple[torch.Tensor, torch.Tensor] | None:
        """x_t^2 in nats squared, 0 where there is none, and whether there is one; both `(batch, positions)`."""
        return None

    @property
    def formula(self) -> str:
        return f"{self.title}: {self.says}{' + ' if self.adds else ''}{self.adds}"

    @property
    def replaces_likelihood(self) -> bool:
        return type(self).likelihood is not PerToken.likelihood

    @property
    def is_scheduled(self) -> bool:
        return type(self).squares is not PerToken.squares

    @property
    def measures(self) -> tuple[str, ...]:
        return ("td_scale",) if self.is_scheduled else ()

    def first_step(self, terms, output):
        return {"td_scale": self.squares(terms, output)} if self.is_scheduled else {}

    def __call__(self, terms: SoftQTerms, output: SoftQOutput, lambda_td: float) -> torch.Tensor:
        loss = self.likelihood(terms, output).sum()
        penalty = self.penalty(terms, output)
        if penalty is not None:
            loss = loss + penalty.sum()
        if lambda_td > 0 and self.is_scheduled:
            loss = loss + lambda_td * self.squares(terms, output)[0].sum()
        return self.with_kl(loss, output)


@dataclass(frozen=True)
class Combined(PerToken):
    """
    The penalties of several objectives, on the likelihood of the one that has another than -log pi.

    Args:
        parts (`tuple[PerToken, ...]`):
            At most one of them replaces the likelihood.
        lambda_kl (`float`, *optional*, defaults to `0.0`)

    Raises:
        `ValueError`: two replace the likelihood, need different statistics of one kind, or take their values from
            different origins.
    """

    parts: tuple[PerToken, ...] = ()

    def __post_init__(self):
        replacing = [type(part).__name__ for part in self.parts if part.replaces_likelihood]
        if len(replacing) > 1:
            raise ValueError(f"{' and '.join(replacing)} each replace the likelihood, and there is one.")
        self.statistics  # noqa: B018  (raises where two do not go together)
        if len({part.value_origin for part in self.parts if "value_origin" in part.uses}) > 1:
            raise ValueError("some take their values from zero and some from the reference: all must do the same.")

    @cached_property
    def _base(self) -> PerToken:
        return next((part for part in self.parts if part.replaces_likelihood), PerToken())

    @cached_property
    def statistics(self):
        return reduce(or_, (part.statistics for part in self.parts))

    @property
    def formula(self) -> str:
        titles, added = (" and ".join(p.title for p in self.parts), [p.adds for p in self.parts if p.adds])
        return f"{titles}: {' + '.join([self._base.says, *added])}"

    @property
    def is_scheduled(self) -> bool:
        return any(part.is_scheduled for part in self.parts)

    @property
    def value_temperature(self) -> float:
        return next((part.value_temperature for part in self.parts if part.value_temperature != 1), 1.0)

    @property
    def value_origin(self) -> str:
        return next((part.value_origin for part in self.parts if part.value_origin != "zero"), "zero")

    @property
    def squares_logged(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.squares_logged)

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.measures))

    def likelihood(self, terms, output):
        return self._base.likelihood(terms, output)

    def penalty(self, terms, output):
        found = [x for part in self.parts if (x := part.penalty(terms, output)) is not None]
        return sum(found) if found else None

    def squares(self, terms, output):
        found = [part.squares(terms, output) for part in self.parts if part.is_scheduled]
        return sum(squares for squares, _ in found), reduce(or_, (known for _, known in found))

    def first_step(self, terms, output):
        of_parts = {name: x for part in self.parts for name, x in part.first_step(terms, output).items()}
        return of_parts | super().first_step(terms, output)

    def given(self, measured: Mapping[str, float]) -> Combined:
        return replace(self, parts=tuple(part.given(measured) for part in self.parts))

    def metrics(self, terms, output):
        return {name: x for part in self.parts for name, x in part.metrics(terms, output).items()}
