"""Generations during training: that training is the same with them, what is logged, and where the tables go."""

import csv
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, settings
from trl_irl import IRLConfig, IRLTrainer
from trl_irl.evaluation.callback import GenerationArguments, GenerationCallback
from trl_irl.evaluation.scoring import Scorer
from trl_irl.text.sampling import sample_completions


def score(text, row):
    return {"accuracy": text == row["completion"], "size": len(text)}


SAMPLED = GenerationArguments(eval_generations=3, eval_num_samples=2, eval_max_new_tokens=6)


def make(kind, tokenizer, folder, model=None, generate=SAMPLED, score=score, **overrides):
    """A trainer that evaluates every 5 of 20 steps, with dropout, so that every step draws random numbers."""
    config, trainer_class = {"irl": (IRLConfig, IRLTrainer), "sft": (SFTConfig, SFTTrainer)}[kind]
    peft_config = overrides.pop("peft_config", None)
    options = {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 5, "per_device_train_batch_size": 3}
    trainer = trainer_class(
        model=model or make_model("qwen2", attention_dropout=0.2),
        args=config(**settings(folder, **{**options, **overrides})),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:4]),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    if generate is not None:
        trainer.add_callback(GenerationCallback(trainer, ROWS, score, generate, corpus=["chrf"]))
    return trainer


@pytest.mark.parametrize("kind", ["irl", "sft"])
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, {"lora": True}],
    ids=["plain", "checkpointing", "lora"],
)
def test_training_is_the_same_to_the_last_bit(kind, options, tokenizer, tmp_path):
    options = dict(options)
    weights = []
    for generate in (None, SAMPLED):
        if options.pop("lora", None) or "peft_config" in options:
            options["peft_config"] = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj"])
        trainer = make(kind, tokenizer, tmp_path / f"{generate is None}", generate=generate, **options)
        trainer.train()
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        assert generate is None or "eval_accuracy" in trainer.state.log_history[-2]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if "gradient_checkpointing" in options:
        module = next(m for m in trainer.model.modules() if getattr(m, "gradient_checkpointing", False))
        assert module._gradient_checkpointing_func.keywords == {"use_reentrant": False}


def test_random_states_are_put_back(tokenizer, tmp_path):
    draws = []
    for generate in (None, SAMPLED):
        trainer = make("irl", tokenizer, tmp_path, generate=generate)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        trainer.evaluate()
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert len(list((tmp_path / "generations").iterdir())) == 1


def test_metrics_are_those_of_the_model_as_it_then_is(tokenizer, tmp_path):
    greedy = GenerationArguments(eval_generations=3, eval_temperature=0, eval_max_new_tokens=6)
    trainer = make("irl", tokenizer, tmp_path, generate=greedy, learning_rate=1e-2)
    trainer.train()
    returned = trainer.evaluate()
    # Evaluated in the same step before, it does not generate twice; the metrics are there all the same.
    logged = [entry for entry in trainer.state.log_history if "eval_size" in entry]
    assert [entry["step"] for entry in logged] == [5, 10, 15, 20]
    for name in ("eval_accuracy", "eval_size", "eval_chrf", "eval_self_bleu"):
        assert returned.get(name) == logged[-1].get(name), name
    model = make_model("qwen2")
    model.load_state_dict(trainer.model.state_dict())
    texts = sample_completions(model, tokenizer, [row["prompt"] for row in ROWS[:3]], 6)
    groups = [[{"text": text, "length": 1, "ended": True} for text in group] for group in texts]
    expected = Scorer(score, ["chrf"]).statistics(groups, ROWS[:3])
    for name in ("accuracy", "size", "chrf"):
        assert logged[-1][f"eval_{name}"] == expected[name].value
    with (tmp_path / "generations/step-20.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["generation"] for row in table] == [group[0] for group in texts]
    assert [row["reference"] for row in table] == [row["completion"] for row in ROWS[:3]]
    assert {row["step"] for row in table} == {"20"} and table[0]["prompt"] == ROWS[0]["prompt"]


def test_it_chooses_the_best_checkpoint(tokenizer, tmp_path):
    """The score is the step's own, highest in the middle; the loss would choose another."""
    sizes = iter([1.0, 5.0, 2.0, 3.0])

    def by_turn(text, row):
        return {"turn": by_turn.now}

    class Turn(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 5 == 0:
                by_turn.now = next(sizes)

    trainer = make(
        "irl",
        tokenizer,
        tmp_path,
        score=by_turn,
        save_strategy="steps",
        save_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="turn",
        greater_is_better=True,
    )
    trainer.add_callback(Turn())
    trainer.train()
    assert trainer.state.best_metric == 5 and trainer.state.best_model_checkpoint.endswith("checkpoint-10")


def test_the_evaluation_after_the_best_weights_came_back_is_of_them(tokenizer, tmp_path):
    """And so is one after weights changed by hand, at the same step; one of unchanged weights generates no more."""
    trainer = make(
        "irl",
        tokenizer,
        tmp_path,
        generate=GenerationArguments(eval_generations=3, eval_temperature=0, eval_max_new_tokens=6),
        score=lambda text, row: {"size": len(text), "bytes": sum(text.encode())},
        learning_rate=3e-2,
        save_strategy="steps",
        save_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="bytes",
        greater_is_better=False,
    )
    trainer.train()
    best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    evaluated = {e["step"]: e["eval_bytes"] for e in trainer.state.log_history if "eval_bytes" in e}
    assert best < 20 and evaluated[best] != evaluated[20]
    calls = []
    generate = GenerationCallback._generate
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, GenerationCallback))
    callback._generate = lambda args: calls.append(1) or generate(callback, args)
    assert trainer.evaluate()["eval_bytes"] == evaluated[best]
    assert trainer.evaluate()["eval_bytes"] == evaluated[best] and len(calls) == 1
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.neg_()
    trainer.evaluate()
    assert len(calls) == 2


def test_each_of_several_evaluation_sets_has_the_generations_metrics(tokenizer, tmp_path):
    trainer = make("irl", tokenizer, tmp_path, max_steps=1, eval_strategy="no")
    metrics = trainer.evaluate({"a": trainer.eval_dataset, "b": trainer.eval_dataset.select([0])})
    assert metrics["eval_a_nll"] != metrics["eval_b_nll"] and "eval_accuracy" in metrics


def test_generations_that_cannot_be_scored_do_not_end_training(tokenizer, tmp_path):
    def raises(text, row):
        raise KeyError("gone")

    trainer = make("irl", tokenizer, tmp_path, score=raises, max_steps=5)
    with pytest.warns(UserWarning, match="6 of 6 generations could not be scored.*KeyError: 'gone'"):
        trainer.train()
    assert trainer.state.log_history[-2]["eval_unscored"] == 1


ANY = [
    {"prompt": [{"role": "user", "content": "Sky?"}], "completion": [{"role": "assistant", "content": "Blue."}]},
    {"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]},
    {"prompt": "Sky?", "completion": "Blue."},
    {"prompt": "Sky?", "references": ["Blue.", "Grey."]},
]


@pytest.mark.parametrize("row", ANY)
@pytest.mark.parametrize("kind", ["mapping", "number", "async"])
def test_rows_and_functions_are_taken_as_evaluate_takes_them(row, kind, tokenizer, tmp_path):
    seen = []

    def mapping(text, row):
        seen.append(row["completion"].strip())
        return {"size": len(text)}

    def size(text, row):
        return mapping(text, row)["size"]

    async def later(text, row):
        return mapping(text, row)

    score = {"mapping": mapping, "number": size, "async": later}[kind]
    trainer = make("irl", tokenizer, tmp_path, generate=None, max_steps=1)
    callback = GenerationCallback(trainer, [row] * 2, score, SAMPLED)
    trainer.add_callback(callback)
    metrics = trainer.evaluate()
    assert metrics["eval_size"] > 0 and "eval_unscored" not in metrics
    assert set(seen) == {"Blue."} and "Sky?" in callback.first[0]


def test_a_function_that_returns_no_score_is_told_at_once(tokenizer, tmp_path):
    trainer = make("irl", tokenizer, tmp_path, generate=None)
    with pytest.raises(ValueError, match="`says` returned 'good', a str. A score is a number"):

        def says(text, row):
            return "good"

        GenerationCallback(trainer, ROWS, says, SAMPLED)


def test_a_table_that_cannot_be_written_does_not_end_training(tokenizer, tmp_path):
    (tmp_path / "generations").write_text("in the way")
    with pytest.warns(UserWarning, match="The generations of step 5 could not be written"):
        make("irl", tokenizer, tmp_path, max_steps=5).train()


def test_prompts_that_do_not_fit_are_refused_before_training(tokenizer, tmp_path):
    long = GenerationArguments(eval_generations=1, eval_max_new_tokens=300)
    with pytest.raises(ValueError, match="context of 256 tokens"):
        make("irl", tokenizer, tmp_path, generate=long)


def tensorboard_table(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("eval/size")] == [5]
    (event,) = events.Tensors("generations/text_summary")
    return event.tensor_proto.string_val[0].decode()


def wandb_table(folder):
    (path,) = folder.rglob("wandb/offline-run-*/files/media/table/generations_*.table.json")
    return path.read_text()


def trackio_table(folder):
    import sqlite3

    (path,) = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
    rows = sqlite3.connect(path).execute("SELECT metrics FROM metrics").fetchall()
    (table,) = [value for (row,) in rows if (value := json.loads(row).get("generations"))]
    return json.dumps(table)


@pytest.mark.parametrize(
    "tracker, table", [("tensorboard", tensorboard_table), ("wandb", wandb_table), ("trackio", trackio_table)]
)
def test_tables_in_trackers(tracker, table, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    greedy = GenerationArguments(eval_generations=2, eval_temperature=0, eval_max_new_tokens=6)
    trainer = make("irl", tokenizer, tmp_path / "run", generate=greedy, max_steps=5, report_to=tracker)
    trainer.train()
    if tracker == "wandb":
        import wandb

        wandb.finish()
    found = table(tmp_path)
    for row in ROWS[:2]:
        assert row["prompt"] in found and row["completion"].strip() in found


def test_as_long_as_training_samples(tokenizer, tmp_path):
    trainer = make("irl", tokenizer, tmp_path, generate=None)
    for told, expected in (({}, 256), ({"response_length": 7}, 7), ({"max_completion_length": 9}, 9)):
        for key, value in told.items():
            setattr(trainer.args, key, value)
        trainer.model.config.max_position_embeddings = 1024
        callback = GenerationCallback(trainer, ROWS, score, GenerationArguments(eval_generations=1))
        assert callback.max_new_tokens == expected
        for key in told:
            delattr(trainer.args, key)
    callback = GenerationCallback(trainer, ROWS, score, GenerationArguments(eval_generations=1, eval_max_new_tokens=5))
    assert callback.max_new_tokens == 5


def test_a_row_without_a_prompt_is_named(tokenizer, tmp_path):
    trainer = make("irl", tokenizer, tmp_path, generate=None)
    rows = [ROWS[0], {"prompt": None, "completion": "x"}]
    with pytest.raises(ValueError, match=r"Row 1 has nothing \(null\) as its `prompt`"):
        trainer.add_callback(GenerationCallback(trainer, rows, score, SAMPLED))
        trainer.evaluate()
