"""
Performance against diversity: sample from models over temperatures and compare what they say.

```bash
trl-irl evaluate --models outputs/mle outputs/irl --task gsm8k --temperatures 0 0.5 1.0 --output_dir outputs/evaluation
```
"""

from dataclasses import dataclass, field

from ..evaluation.settings import EvaluationSettings, named
from .console.command import command, goes_on_from


@dataclass
class EvaluateArguments(EvaluationSettings):
    """
    Arguments of the `evaluate` command: [`~evaluation.settings.EvaluationSettings`] and

    Args:
        models (`list[str]`):
            Folders, Hub ids or adapters; `name=path` gives one a name in the report. The first is the baseline.
        output_dir (`str`, *optional*, defaults to `"outputs/evaluation"`)
    """

    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders, Hub ids or adapters; `name=path` names one in the report."}
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where samples and report go."})

    def __post_init__(self):
        super().__post_init__()
        self.check_models(self.named_models())

    def named_models(self) -> dict[str, str]:
        """Path or Hub id of each model, by its name in the report."""
        return named(self.models, "models")


def main(arguments: EvaluateArguments) -> None:
    """Sample, score, write the report and print its tables."""
    from ..evaluation import evaluate

    results = evaluate(arguments.named_models(), settings=arguments)
    report = results.write(arguments.output_dir)
    results.print()
    seconds = results.seconds
    print(f"{seconds['models']:.1f} s in the models, {seconds['metrics']:.1f} s for the metrics.")
    print(f"Report: {report}")


def _kept(arguments: EvaluateArguments) -> str:
    return goes_on_from(f"{arguments.output_dir}/cells", "sampled")


make_parser, run = command("evaluate", EvaluateArguments, __doc__, main, _kept)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
