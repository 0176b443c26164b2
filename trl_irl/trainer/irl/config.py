from dataclasses import dataclass, field

from trl import SFTConfig

from ..runtime.run_arguments import RunArguments
from .objective_arguments import ObjectiveArguments


@dataclass
class IRLConfig(ObjectiveArguments, RunArguments, SFTConfig):
    r"""
    Configuration class for the [`IRLTrainer`].

    [`IRLConfig`] inherits every parameter from [`~trl.SFTConfig`] and those of the objective, the inverse soft-Q
    objective ([arXiv 2409.01369](https://huggingface.co/papers/2409.01369)) or another, from
    [`~trainer.irl.objective_arguments.ObjectiveArguments`], and what a run may need, from
    [`~trainer.runtime.run_arguments.RunArguments`].

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `loss_type`: `"nll"` on every version of TRL, and no other value: the loss is this trainer's. (`"chunked_nll"`
    >   is read as `"nll"`.)
    > - `liger_kernel_config`: with `use_liger_kernel=True`, Liger's fused linear cross-entropy is off, since it would
    >   replace the forward that holds the soft-Q head.
    """

    # Parameters whose default values are overridden from SFTConfig
    loss_type: str = field(
        default="nll",
        metadata={"help": "Always 'nll': the loss is the inverse soft-Q objective.", "choices": ["nll"]},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type == "chunked_nll":  # SFTConfig's default in TRL 1.12, and another way to the same number
            self.loss_type = "nll"
        if self.loss_type != "nll":
            raise ValueError(
                f"`loss_type={self.loss_type!r}` is SFTTrainer's key. Leave it unset and choose by `objective`, "
                "such as `objective='nll'` or `objective='dft'`."
            )
        self.check_objective()
        if self.use_liger_kernel:
            # Liger would patch `model.forward` when training starts. TRL >= 1.13 turns this off itself; ours can go
            # with TRL 1.12.
            self.liger_kernel_config = {**(self.liger_kernel_config or {}), "fused_linear_cross_entropy": False}
