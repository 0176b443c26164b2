"""
What of TRL and of transformers' Trainer is no public name and is used here all the same: where one of them moves, this
fails first, and says what. A line that is not used any more fails too.
"""

import ast
import importlib
import inspect
from functools import cache

import accelerate
import pytest
import transformers
import trl

import trl_irl
from tests.test_tables import ROOT


# Names from inside of TRL, by module; those of `trl.experimental` can go with TRL 1.12.
IMPORTED = {
    ("trl.experimental.ppo", "PPOConfig"),
    ("trl.experimental.ppo", "PPOTrainer"),
    ("trl.experimental.utils", "get_reward"),
    ("trl.generation.vllm_generation", "VLLMGeneration"),
    ("trl.import_utils", "is_vllm_available"),
    ("trl.models.utils", "prepare_deepspeed"),
    ("trl.models.utils", "prepare_fsdp"),
    ("trl.models.utils", "unwrap_model_for_generation"),
    ("trl.trainer.base_trainer", "_BaseTrainer"),
    ("trl.trainer.sft_trainer", "DataCollatorForLanguageModeling"),
    ("trl.trainer.utils", "create_model_from_path"),
    ("trl.trainer.utils", "get_config_model_id"),
    ("trl.trainer.utils", "maybe_gather_lm_head_ctx"),
}
_OF_ALL = {
    "_get_grad_norm": "model grad_norm",
    "_load_optimizer_and_scheduler": "checkpoint",
    "_save_checkpoint": "model trial",
    "_save_rng_state": "output_dir",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "get_batch_samples": "epoch_iterator num_batches device",
    "log": "logs start_time",
    "train": "resume_from_checkpoint trial ignore_keys_for_eval",
}
_OF_DEMONSTRATIONS = {
    "_save": "output_dir state_dict",
    "_save_optimizer_and_scheduler": "output_dir",
    "predict": "test_dataset ignore_keys metric_key_prefix",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
}
_PREPARED = {"_prepare_dataset": "dataset processing_class args packing formatting_func dataset_name"}
# Methods that are overridden, with the arguments that the base gives them.
OVERRIDDEN = {
    "IRLTrainer": {**_OF_ALL, **_OF_DEMONSTRATIONS, **_PREPARED},
    "OnlineIRLTrainer": {
        **_OF_ALL,
        **_OF_DEMONSTRATIONS,
        **_PREPARED,
        "_load_rng_state": "checkpoint",
        "training_step": "args kwargs",
    },
    "GAILTrainer": {
        **_OF_ALL,
        "_generate": "prompts",
        "_generate_and_score_completions": "inputs",
        "_generate_single_turn": "prompt_ids images multimodal_fields",
        "_load_best_model": "",
        "_save_optimizer_and_scheduler": "output_dir",
        "get_eval_dataloader": "eval_dataset",
        "get_test_dataloader": "test_dataset",
        "save_model": "output_dir _internal_call",
    },
    "Seq2SeqIRLTrainer": {
        **_OF_ALL,
        **_OF_DEMONSTRATIONS,
        "evaluate": "eval_dataset ignore_keys metric_key_prefix gen_kwargs",
        "predict": "test_dataset ignore_keys metric_key_prefix gen_kwargs",
        "prediction_step": "model inputs prediction_loss_only ignore_keys gen_kwargs",
    },
}
# Class attributes that are overridden, for the model card.
OF_THE_CARD = {"_name", "_paper", "_tag_names"}
# Private attributes that are read, by the class that has them.
READ = {
    "_models": accelerate.Accelerator,
    "_get_output_dir": transformers.Trainer,
    "_get_per_token_logps_and_entropies": trl.RLOOTrainer,
    "_keep_in_fp32_modules": transformers.PreTrainedModel,
    "_metrics": trl.RLOOTrainer,
    "_pad_tensors_to_max_len": transformers.Seq2SeqTrainer,
    "_prepare_inputs": transformers.Trainer,
    "_set_signature_columns_if_needed": transformers.Trainer,
    "_signature_columns": transformers.Trainer,
}
# Of the standard library, PyTorch, sacrebleu and datasets; or a config's own.
OTHERS = {"_name_or_path", "_asdict", "_buffers", "_cdata", "_exit", "_modules", "_parameters", "_replace", "_to_copy"}
OTHERS |= {"_actions", "_option_string_actions", "_scaled_dot_product_flash_attention_for_cpu", "_version"}
OTHERS |= {"_grouped_mm"}
OTHERS |= {"_compute_score_from_stats", "_extract_corpus_statistics"}


@cache
def found() -> tuple[set[tuple[str, str]], set[str]]:
    """Names that the package imports from inside of TRL, and private attributes that it reads and does not define."""
    imported, defined, read = set(), set(), set()
    for path in (ROOT / "trl_irl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                (defined if isinstance(node.ctx, ast.Store) else read).add(node.attr)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl.") and not node.level:
                imported |= {(node.module, alias.name) for alias in node.names}
    return imported, read - defined


def test_the_lists_are_what_the_package_uses():
    imported, read = found()
    assert imported == IMPORTED
    assert read == READ.keys() | OTHERS


@pytest.mark.parametrize("module, name", sorted(IMPORTED))
def test_imported(module, name):
    if module.startswith("trl.experimental"):
        pytest.importorskip("trl.experimental.ppo", reason="this TRL has no PPOTrainer")
    assert hasattr(importlib.import_module(module), name)


def base_of(trainer: type, name: str):
    """The method as the first class has it that is not of this package."""
    others = (c for c in trainer.__mro__ if not c.__module__.startswith("trl_irl"))
    return next((vars(c)[name] for c in others if name in vars(c)), None)


@pytest.mark.parametrize("trainer", OVERRIDDEN)
def test_overridden(trainer):
    trainer_class = getattr(trl_irl, trainer)
    own = {name for c in trainer_class.__mro__ if c.__module__.startswith("trl_irl") for name in vars(c)}
    bases = {name: base_of(trainer_class, name) for name in own if not name.startswith("__")}
    methods = {name: base for name, base in bases.items() if inspect.isfunction(base)}
    actual = {name: " ".join([*inspect.signature(base).parameters][1:]) for name, base in methods.items()}
    assert actual == OVERRIDDEN[trainer]
    plain = {name for name, base in bases.items() if base is not None and name not in methods}
    assert plain <= OF_THE_CARD


@pytest.mark.parametrize("name", READ)
def test_read(name):
    owner = READ[name]
    sources = "".join(
        inspect.getsource(c) for c in owner.__mro__ if c.__module__.startswith(("trl", "transformers", "accelerate"))
    )
    assert hasattr(owner, name) or f"self.{name}" in sources
