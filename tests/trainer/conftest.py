import pytest
from datasets import Dataset

from tests.conftest import make_model
from trl_irl import IRLConfig, IRLTrainer


ROWS = [
    {"prompt": "What is the sky?", "completion": " It is blue."},
    {"prompt": "Count:", "completion": " one two three 1 2 3 and the lazy dog jumps over the fox"},
    {"prompt": "The quick", "completion": " brown"},
    {"prompt": "Fox?", "completion": "fox"},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "What is blue?", "completion": " The sky is blue, the dog is lazy."},
    {"prompt": "Dog", "completion": " 1"},
    {"prompt": "It is", "completion": " what it is"},
]


def settings(output_dir, **overrides):
    """Arguments of a small, quiet, exact run on the CPU."""
    defaults = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": len(ROWS),
        "per_device_eval_batch_size": 3,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 64,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
    }
    return defaults | overrides


@pytest.fixture
def make_trainer(tokenizer, tmp_path):
    """`make_trainer(model=..., train_dataset=..., lambda_td=..., ...)`: trainer arguments and IRLConfig's, mixed."""

    def make(model=None, train_dataset=None, **kwargs):
        own = ("eval_dataset", "peft_config", "ref_model", "compute_metrics", "quantization_config", "data_collator")
        own += ("formatting_func", "processing_class")
        trainer_kwargs = {name: kwargs.pop(name) for name in own if name in kwargs}
        trainer_kwargs.setdefault("processing_class", tokenizer)
        if "trainer_objective" in kwargs:  # the trainer's argument; `objective` is that of IRLConfig
            trainer_kwargs["objective"] = kwargs.pop("trainer_objective")
        return IRLTrainer(
            model=make_model("qwen2") if model is None else model,
            args=IRLConfig(**{"terminal_value": "zero", "td_scale": 1.0, **settings(tmp_path / "run", **kwargs)}),
            train_dataset=Dataset.from_list(ROWS) if train_dataset is None else train_dataset,
            **trainer_kwargs,
        )

    return make


def one_step(trainer):
    """Loss and gradients of one optimiser step's worth of micro-batches, as the training loop computes them."""
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    steps = trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = steps
    batches, num_items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), steps, trainer.args.device)
    trainer.model.zero_grad()
    loss = sum(trainer.training_step(trainer.model, batch, num_items) for batch in batches)
    return loss, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
