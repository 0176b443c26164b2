"""The soft-Q mathematics: tensors in, tensors out. Nothing here knows a Trainer or a dataset."""

from .head import SoftQOutput, attach_soft_q_head, soft_q_head, soft_q_values
from .reference_kl import reference_kl
from .terms import SoftQTerms, soft_q_terms


__all__ = [
    "SoftQOutput",
    "SoftQTerms",
    "attach_soft_q_head",
    "reference_kl",
    "soft_q_head",
    "soft_q_terms",
    "soft_q_values",
]
