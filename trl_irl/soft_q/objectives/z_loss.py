"""
Likelihood with the log-partition held near a constant:

    L = sum over scored tokens of  -log pi(a_t|s_t) + z_loss_weight * (V(s_t) - c)^2

V is the logarithm of the softmax's normaliser, to which likelihood is blind. The constant c is 0, or the mean of V
that the model has before training (z_loss_center "measured"), so that a pretrained model's values are held where they
are instead of pulled to 0. The weight is 1e-4 in "PaLM: Scaling Language Modeling with Pathways" (arXiv 2204.02311),
for stability; at 0.1 it is a rival of the inverse soft-Q objective, which holds V from moving along the text rather
than in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .per_token import PerToken, of_values


CENTERS = ("zero", "measured")


@dataclass(frozen=True)
class ZLoss(PerToken):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        z_loss_weight (`float`, *optional*, defaults to `1e-4`)
        z_loss_center (`str`, *optional*, defaults to `"zero"`):
            What V is held near: 0, or what the first step measures.
        center (`float`, *optional*, defaults to `0.0`):
            That constant, in nats.
        value_origin (`str`, *optional*, defaults to `"zero"`):
            `"reference"`: V is taken from the reference's at the same state, so that the constant is one for each
            state; see [`~soft_q.objectives.per_token`].
    """

    z_loss_weight: float = 1e-4
    z_loss_center: str = "zero"
    center: float = 0.0
    value_origin: str = "zero"
    title = "z-loss"
    uses = ("z_loss_weight", "z_loss_center", "value_origin")

    @property
    def adds(self) -> str:
        return f"z_loss_weight * (V - center)^2{of_values(self)}"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("z_loss_center",) if self.z_loss_center == "measured" else ()

    def first_step(self, terms, output):
        return {"z_loss_center": (terms.value, terms.scored)} if self.measures else {}

    def given(self, measured):
        return replace(self, center=measured.get("z_loss_center", self.center))

    def _squares(self, terms):
        return (terms.value - self.center).masked_fill(~terms.scored, 0).square()

    def penalty(self, terms, output):
        return self.z_loss_weight * self._squares(terms)

    def metrics(self, terms, output):
        return {"v_squared": (self._squares(terms), terms.scored)}
