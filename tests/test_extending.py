"""What docs/extending.md adds from outside: its code is taken from the page, and is right to the digits."""

import importlib
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import IRLConfig, IRLTrainer
from trl_irl.commands import evaluate, irl
from trl_irl.evaluation import EvaluationSettings
from trl_irl.evaluation import evaluate as evaluated
from trl_irl.soft_q import attach_soft_q_head
from trl_irl.text.samplers import Sampler


PAGE = Path(__file__).parents[1] / "docs/extending.md"


@pytest.fixture
def of_page(tmp_path, monkeypatch):
    """Imports a module that the page shows, from a folder that is not the package's."""
    blocks = dict(re.findall(r'```python title="(\w+)\.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for name, code in blocks.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def z_loss(logits, nll):
    return nll + 0.3 / 2.0 * logits.logsumexp(-1).square()


def least_entropy(logits, nll):
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    return nll + (1 - entropy).clamp(min=0).square()


def sharp_model():
    """Whose entropy is below a nat at some tokens, and above it at others."""
    model = make_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model


@pytest.mark.parametrize("accumulation, is_named", [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize(
    "module, name, formula",
    [
        ("z_loss", "ZLoss", z_loss),
        ("squared_value", "SquaredValue", z_loss),
        ("least_entropy", "LeastEntropy", least_entropy),
    ],
)
def test_an_objective(module, name, formula, of_page, tokenizer, tmp_path, accumulation, is_named):
    """
    The loss and all gradients of its step against plain autograd on the model's own logits, whether it is passed or
    named as in a recipe.
    """
    keys = {"lambda_td": 0.3, "td_scale": 2.0, "gradient_accumulation_steps": accumulation}
    keys["per_device_train_batch_size"] = len(ROWS) // accumulation
    keys |= {"objective": f"{module}:{name}"} if is_named else {}
    rows, objective = Dataset.from_list(ROWS), None if is_named else getattr(of_page(module), name)()
    arguments = IRLConfig(**settings(tmp_path, **keys))
    trainer = IRLTrainer(
        sharp_model(), args=arguments, train_dataset=rows, processing_class=tokenizer, objective=objective
    )
    loss, gradients = one_step(trainer)

    plain = sharp_model()
    batch = trainer.data_collator(list(trainer.train_dataset))
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()
    labels = batch["labels"][:, 1:]
    scored = labels != -100
    nll = logits.logsumexp(-1) - logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = (formula(logits, nll) * scored).sum() / scored.sum()
    expected.backward()
    torch.testing.assert_close(torch.as_tensor(loss).double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=5e-6)


STRONG = """
from dataclasses import dataclass
from trl_irl.soft_q.objectives import Objective

class Plain(Objective):
    def __call__(self, terms, output, lambda_td):
        return self.with_kl(2.0 * terms.nll.sum(), output)

@dataclass(frozen=True)
class Strong(Plain):
    lambda_kl: float = 0.0

@dataclass(frozen=True)
class Without(Plain):
    strength: float = 2.0
"""


@pytest.mark.parametrize("name", ["Plain", "Strong"])
def test_a_named_objective_weighs_the_kl(name, of_page, tokenizer, tmp_path):
    (tmp_path / "strong.py").write_text(STRONG, encoding="utf-8")
    losses = []
    for weight in (0.0, 5.0):
        trainer = IRLTrainer(
            sharp_model(),
            args=IRLConfig(**settings(tmp_path, objective=f"strong:{name}", lambda_kl=weight, td_scale=1.0)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            ref_model=make_model(seed=1) if weight else None,
        )
        assert trainer.objective.lambda_kl == weight
        losses.append(float(one_step(trainer)[0]))
    assert losses[1] > losses[0] + 0.1
    with pytest.raises(ValueError, match="Without is a dataclass without a field `lambda_kl"):
        IRLConfig(**settings(tmp_path, objective="strong:Without", lambda_kl=5.0))


def test_keys_of_a_named_objective(of_page, tmp_path):
    code = "from trl_irl.soft_q.objectives import PerToken\nclass Plain(PerToken):\n    title = 'plain'\n"
    (tmp_path / "plain.py").write_text(code, encoding="utf-8")
    assert IRLConfig(**settings(tmp_path, objective="plain:Plain")).lambda_td_in_use == 0
    assert IRLConfig(**settings(tmp_path, objective="squared_value:SquaredValue")).lambda_td_in_use == 0.1
    with pytest.raises(ValueError, match="`lambda_td=0.3` means nothing to `objective='plain:Plain'`"):
        IRLConfig(**settings(tmp_path, objective="plain:Plain", lambda_td=0.3))


def test_named_objectives_join_with_those_of_the_package(of_page, tokenizer, tmp_path):
    losses = {}
    for name in (
        "nll",
        "squared_value:SquaredValue",
        "value_consistency",
        "squared_value:SquaredValue+value_consistency",
    ):
        keys = {} if name == "nll" else {"lambda_td": 0.3, "td_scale": 2.0}
        trainer = IRLTrainer(
            sharp_model(),
            args=IRLConfig(**settings(tmp_path, objective=name, **keys)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
        losses[name] = float(one_step(trainer)[0])
    likelihood, first, second, both = losses.values()
    assert min(first, second) > likelihood + 0.1
    assert both == pytest.approx(first + second - likelihood, rel=1e-5)


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("nowhere_at_all:Own", {}, "is unknown: `objective: nowhere_at_all:Own` could not be imported: No module"),
        (":Own", {}, "could not be imported"),
        ("squared_value:Nothing", {}, "`squared_value:Nothing` names no subclass of .*Objective"),
        ("trl_irl.soft_q.objectives:Objective", {}, "names no subclass of"),
        ("json:dumps", {}, "`json:dumps` names no subclass of"),
        ("z_loss:ZLoss+soft_q", {}, "cannot be: ZLoss is no `PerToken`"),
        (
            "squared_value:SquaredValue",
            {"gem_beta": 0.3},
            "`gem_beta=0.3` means nothing to `objective='squared_value:",
        ),
        ("choosy:Choosy", {}, "a Choosy cannot be made from IRLConfig's keys alone: .*'weight'"),
    ],
)
def test_a_named_objective_that_cannot_be(name, keys, message, of_page, tmp_path):
    code = "from trl_irl.soft_q.objectives import Objective\n"
    code += "class Choosy(Objective):\n    def __init__(self, weight): ...\n    def __call__(self, *terms): ..."
    (tmp_path / "choosy.py").write_text(code, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        IRLConfig(**settings(tmp_path, objective=name, **keys))


def test_a_named_objective_on_the_command_line(of_page, model_folder, tmp_path, capsys):
    rows = [{"prompt": f"One {i}", "completion": " two"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--objective", "squared_value:SquaredValue", "--lambda_td", "0.25", "--dataset_name", "rows.jsonl"]
    words += ["--model_name_or_path", str(model_folder), "--output_dir", "run", "--max_steps", "2", "--use_cpu"]
    assert irl.run([*words, "--report_to", "none"]) == 0
    assert "z-loss: nll + lambda_td / td_scale * V^2, lambda_td 0.25, td_scale" in capsys.readouterr().out
    told = json.loads((tmp_path / "run/soft_q.json").read_text())
    assert told["objective"] == "squared_value:SquaredValue" and told["td_scale"] > 1


@pytest.mark.parametrize("module, name", [("z_loss", "ZLoss"), ("squared_value", "SquaredValue")])
def test_the_scale_of_an_objective(module, name, of_page, tokenizer, tmp_path, caplog):
    """One measures the mean of its squares at the first step, the other says that it does not."""
    arguments = IRLConfig(**settings(tmp_path, lambda_td=0.3, td_scale=None, max_steps=1))
    model, objective = sharp_model(), getattr(of_page(module), name)()
    with caplog.at_level(logging.WARNING, logger="trl_irl"):
        trainer = IRLTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            objective=objective,
        )
    said = "`td_scale` is not set, and ZLoss does not measure one" in caplog.text
    assert said == (name == "ZLoss")
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        plain = sharp_model()
        v = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].logsumexp(-1)
    expected = v[batch["labels"][:, 1:] != -100].square().mean().item()
    trainer.train()
    assert trainer.td_scale == pytest.approx(1.0 if said else expected, rel=1e-5)


def test_a_task(of_page, model_folder, tmp_path, capsys):
    """From its rows to its number in the report: the share that its own function gives of what was said."""
    short = of_page("short")
    rows = [{"text": f"{word} fox", "summary": "the quick brown fox"} for word in ("The quick", "What", "One")]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task", "short:TASK", "--dataset_name", "texts.jsonl", "--source_column", "text", "--target_column"]
    words += ["summary", "--split", "train", "--models", f"base={model_folder}", "--max_new_tokens", "6"]
    assert evaluate.run([*words, "--temperatures", "1", "--output_dir", "report"]) == 0
    assert "shorter" in capsys.readouterr().out
    said = [json.loads(line) for line in (tmp_path / "report/samples.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in said] == [f"{row['text']}\n\nIn short:" for row in rows]
    reference = {"completion": "the quick brown fox"}
    expected = [short.shorter(one["text"], reference)["shorter"] for line in said for one in line["completions"]]
    (numbers,) = json.loads((tmp_path / "report/metrics.json").read_text())
    assert numbers["metrics"]["shorter"]["mean"] == pytest.approx(sum(expected) / len(expected))
    assert "rouge1" in numbers["metrics"]
    assert short.TASK.explained["shorter"] in (tmp_path / "report/report.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="`task: short:TASK` with `source_column` not set"):
        EvaluationSettings(task="short:TASK")
    alone = evaluated({"base": str(model_folder)}, rows, EvaluationSettings(task="short:TASK", split="train", **NAMED))
    assert alone.values["base", Sampler(1.0)]["shorter"].value == pytest.approx(sum(expected) / len(expected))


NAMED = {"source_column": "text", "target_column": "summary", "temperatures": [1.0], "max_new_tokens": 6}


def test_a_model_family(of_page):
    """Q and V of the head are those of the model's own logits, which are not its projection's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = of_page("cold").ColdLlama(config).eval()
    ids = torch.randint(3, 97, (2, 12))
    logits = model(input_ids=ids).logits[:, :-1]
    assert logits.abs().max() < 20
    attach_soft_q_head(model)
    output = model(input_ids=ids, labels=ids, soft_q="values")
    torch.testing.assert_close(output.v, logits.logsumexp(-1))
    torch.testing.assert_close(output.q, logits.gather(-1, ids[:, 1:, None])[..., 0])
