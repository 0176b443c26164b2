"""The soft-Q mathematics: tensors in, tensors out. Nothing here knows a Trainer or a dataset."""

from .head import SoftQOutput, attach_soft_q_head, soft_q_head
from .reference_kl import Reference
from .statistics import Statistics
from .terms import SoftQTerms, soft_q_terms
from .values import soft_q_values


__all__ = [
    "Reference",
    "SoftQOutput",
    "SoftQTerms",
    "Statistics",
    "attach_soft_q_head",
    "soft_q_head",
    "soft_q_terms",
    "soft_q_values",
]
