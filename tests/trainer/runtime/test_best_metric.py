"""The best checkpoint is the best: each metric's direction, several evaluation sets, early stopping."""

import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, settings
from trl_irl import GAILConfig, IRLConfig
from trl_irl.trainer.runtime.best_metric import known_direction


@pytest.mark.parametrize(
    "names, greater",
    [
        (["nll", "eval_nll", "eval_hard_nll", "td_loss", "kl", "loss", "easy_loss", "aux_loss", "self_bleu"], False),
        (["accuracy", "eval_accuracy", "reward", "win_rate", "mean_token_accuracy", "entropy", "rougeL"], True),
        (["pass@4", "eval_pass@8", "bleu", "test_bleu", "log_pi_mean", "eval_accuracy_math"], True),
        (["length", "says_it", "q_mean", "null", "eval_skill", "accuracy_of_nothing"], None),
    ],
)
def test_directions(names, greater):
    assert [known_direction(name) for name in names] == [greater] * len(names)


@pytest.mark.parametrize("config, more", [(IRLConfig, {}), (GAILConfig, {"num_generations": 2})])
def test_a_metric_whose_direction_is_not_known_must_have_one(config, more, tmp_path):
    keys = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, **more}
    assert config(**keys, metric_for_best_model="kl").greater_is_better is False
    assert config(**keys, metric_for_best_model="kl", greater_is_better=True).greater_is_better is True
    assert config(**keys, metric_for_best_model="words", greater_is_better=False).greater_is_better is False
    with pytest.raises(ValueError, match="`metric_for_best_model: words` is a metric whose direction is not known"):
        config(**keys, metric_for_best_model="words")


@pytest.mark.parametrize("metric, best", [("nll", min), ("td_loss", min), ("mean_token_accuracy", max)])
def test_the_best_checkpoint_is_kept(make_trainer, metric, best):
    """At a learning rate at which the numbers go up and down."""
    trainer = make_trainer(
        eval_dataset=Dataset.from_list(ROWS[:4]),
        max_steps=6,
        learning_rate=0.1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    values = {e["step"]: e[f"eval_{metric}"] for e in trainer.state.log_history if f"eval_{metric}" in e}
    assert len(set(values.values())) > 2
    assert trainer.state.best_metric == best(values.values())
    kept = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    assert values[kept] == trainer.state.best_metric
    assert trainer.evaluate()[f"eval_{metric}"] == pytest.approx(values[kept], rel=1e-5)


def test_early_stopping_follows_the_direction(make_trainer):
    def steps(learning_rate: float) -> int:
        trainer = make_trainer(
            make_model("llama"),
            eval_dataset=Dataset.from_list(ROWS),
            max_steps=8,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            optim="sgd",
            lambda_td=0.0,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="nll",
        )
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
        trainer.train()
        return trainer.state.global_step

    assert steps(0.01) == 8  # the nll falls all the time
    assert steps(-0.0) == 3  # it stays


def test_several_evaluation_sets_have_names_of_their_own(make_trainer):
    sets = {"first": Dataset.from_list(ROWS[:4]), "rest": Dataset.from_list(ROWS[4:])}
    trainer = make_trainer(eval_dataset=sets, eval_strategy="steps", eval_steps=1, max_steps=2)
    alone = {name: make_trainer(eval_dataset=data).evaluate() for name, data in sets.items()}
    metrics = trainer.evaluate()
    for name, expected in alone.items():
        for metric in ("nll", "td_loss", "entropy", "loss"):
            assert metrics[f"eval_{name}_{metric}"] == pytest.approx(expected[f"eval_{metric}"], rel=1e-5)
    assert "eval_nll" not in metrics
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_rest_nll" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]  # training begins a log of its own
    assert "test_nll" in make_trainer().evaluate(Dataset.from_list(ROWS), metric_key_prefix="test")


def test_a_best_metric_of_several_sets_must_name_one(make_trainer, tmp_path):
    sets = {"first": Dataset.from_list(ROWS[:4]), "rest": Dataset.from_list(ROWS[4:])}
    keys = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    keys |= {"load_best_model_at_end": True}
    with pytest.raises(ValueError, match="there are 2 evaluation datasets. Name one of first_nll, rest_nll"):
        make_trainer(eval_dataset=sets, metric_for_best_model="nll", **keys)
    trainer = make_trainer(eval_dataset=sets, metric_for_best_model="rest_nll", **keys)
    trainer.train()
    values = [e["eval_rest_nll"] for e in trainer.state.log_history if "eval_rest_nll" in e]
    assert trainer.state.best_metric == min(values)


def test_ppo_refuses_keys_that_do_nothing(tmp_path):
    ppo = pytest.importorskip("trl_irl.trainer.ppo.trainer", reason="TRL without PPO", exc_type=ImportError)
    keys = {k: x for k, x in settings(tmp_path).items() if k not in ("max_length", "max_steps")}
    assert ppo.PPOConfig(**keys).temperature > 0
    for name, value in {
        "max_steps": 5,
        "max_grad_norm": 0.3,
        "load_best_model_at_end": True,
        "neftune_noise_alpha": 5.0,
        "eval_on_start": True,
        "gradient_checkpointing": True,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
    }.items():
        more = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        with pytest.raises(ValueError, match=f"`{name}: .*does nothing in TRL 1.12's PPOTrainer"):
            ppo.PPOConfig(**{**keys, **more, name: value})
    with pytest.raises(ValueError, match="`temperature: 0.0` must be above 0"):
        ppo.PPOConfig(**keys, temperature=0.0)
