"""Sampling from models, metrics of what they said, and the report that shows them: see [`evaluate`]."""

from typing import TYPE_CHECKING

from .._lazy import names_from


if TYPE_CHECKING:
    from .callback import GenerationArguments, GenerationCallback
    from .results import Results
    from .run import evaluate
    from .settings import EvaluationSettings

__all__ = ["EvaluationSettings", "GenerationArguments", "GenerationCallback", "Results", "evaluate"]

__getattr__, __dir__ = names_from(
    __name__,
    {
        "EvaluationSettings": ".settings",
        "GenerationArguments": ".callback",
        "GenerationCallback": ".callback",
        "Results": ".results",
        "evaluate": ".run",
    },
)
