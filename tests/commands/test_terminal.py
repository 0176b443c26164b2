"""What a training shows: a table before it, columns while it runs, and commands that work after it."""

import csv
import json
import math
import re
import shlex
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands.test_irl import write_recipe
from trl_irl import IRLConfig, IRLTrainer
from trl_irl.cli import main as cli
from trl_irl.commands import chat, evaluate, gail, irl, online_irl, recipes, score
from trl_irl.commands.console.recipe_file import find_recipe, shipped_recipes
from trl_irl.commands.console.terminal import Terminal, evaluation_line, number
from trl_irl.commands.console.training_table import describe, objective, rows_of, schedule, weights
from trl_irl.soft_q.objectives import Objective, ValueConsistency, ZLoss


CPU = {"use_cpu": True, "bf16": False}


@pytest.fixture
def trained(model_folder, tmp_path, monkeypatch, capfd):
    """Output of a run of `trl-irl irl`, its folder, and its log history."""
    monkeypatch.chdir(tmp_path)
    keys = {"eval_strategy": "steps", "eval_steps": 2, "do_eval": True, "max_steps": 5, "mle_warmup_steps": 2}
    recipe = write_recipe(tmp_path, model_folder, lambda_td_warmup_steps=2, output_dir="run", **keys)
    assert irl.run(["--config", str(recipe)]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    return capfd.readouterr(), tmp_path / "run", state["log_history"]


def test_a_run_on_a_pipe_is_a_table_columns_and_commands_that_work(trained, model_folder):
    told, folder, history = trained
    assert "5 of 4 rows, " in told.out
    assert "MLE for steps 0 to 1, then lambda_td rises to 0.1 at step 3" in " ".join(told.out.split())
    header = next(line for line in told.out.splitlines() if line.strip().startswith("step "))
    titles = re.split(r" {2,}", header.strip())
    lines = [line.split() for line in told.out.splitlines() if re.match(r" +\d+ +[\d.]", line)]
    logged = [entry for entry in history if "nll" in entry]
    assert len(lines) == len(logged) == 5 and "{'" not in told.out and told.out.count(header) == 1
    for line, entry in zip(lines, logged, strict=True):
        shown = dict(zip(titles, line, strict=True))
        assert int(shown["step"]) == entry["step"]
        for title, key in {"nll": "nll", "td_loss": "td_loss", "reward": "reward_mean", "lr": "learning_rate"}.items():
            assert float(shown[title]) == pytest.approx(entry[key], rel=1e-3, abs=1e-9)
        assert float(shown["tokens/s"].replace(",", "")) > 0
    evaluated = [entry for entry in history if "eval_nll" in entry]
    assert all(f"step {entry['step']}: eval_loss {number(entry['eval_loss'])}" in told.out for entry in evaluated)
    assert "/5 [" not in told.err  # no bar of training where nobody sees it move
    assert f"Last log (step 5): nll {number(logged[-1]['nll'])}" in told.out
    proposed = [shlex.split(line) for line in told.out.partition("Next:\n")[2].splitlines()]
    assert ("Nothing was held out" in told.out) == ("train" in proposed[0])
    assert [words[:2] for words in proposed] == [["trl-irl", name] for name in ("evaluate", "score", "chat")]
    assert proposed[0][3] == f"base={model_folder}"
    few = ["--num_prompts", "2", "--batch_size", "8", "--temperatures", "1", "--num_samples", "2"]
    assert evaluate.run([*proposed[0][2:], *few]) == 0 and score.run([*proposed[1][2:], "--num_rows", "2"]) == 0
    assert chat.run([*proposed[2][2:], "--prompt", "One two", "--max_new_tokens", "3"]) == 0
    assert (folder / "evaluation" / "report.md").is_file() and (folder / "rewards.html").is_file()


def test_after_each_evaluation_one_answer_is_shown(model_folder, tmp_path, capfd):
    """The first prompt once, and what the model says to it by then, as in the generations that are kept."""
    keys = {"eval_strategy": "steps", "eval_steps": 2, "eval_generations": 3, "eval_num_samples": 1}
    recipe = write_recipe(tmp_path, model_folder, eval_max_new_tokens=6, eval_temperature=1.0, **keys)
    assert irl.run(["--config", str(recipe)]) == 0
    told = capfd.readouterr().out
    kept = []
    for step in (2, 4):
        with (tmp_path / f"run/generations/step-{step}.csv").open(encoding="utf-8", newline="") as file:
            kept.append(list(csv.reader(file))[1])
    assert kept[0][1] == kept[1][1]
    assert told.count("    asked: QUESTION: ") == 1
    for step, (_, prompt, said, _) in zip((2, 4), kept, strict=True):
        assert f"step {step}: eval_loss" in told
        clean = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in said.strip())
        for line in (prompt if step == 2 else "").strip().splitlines() + (clean.splitlines() or ["(nothing)"]):
            assert line in told
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", told)  # nothing that a terminal obeys
    assert len(re.findall("^    said:  ", told, re.MULTILINE)) == 2


def make(model_folder, tmp_path, rows, **settings):
    args = IRLConfig(str(tmp_path), report_to="none", **CPU, **settings)
    return IRLTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )


def test_rows_are_counted_as_the_loss_sees_them(model_folder, tmp_path):
    prompts, answers = ["The quick", "One two three", "What"], [" brown fox", " 1 2 3", " is the colour of the sky"]
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, answers, strict=True)]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lengths = [len(tokenizer(p + c).input_ids) + 1 for p, c in zip(prompts, answers, strict=True)]  # EOS
    scored = [n - len(tokenizer(p).input_ids) for n, p in zip(lengths, prompts, strict=True)]
    rows_seen = rows_of(make(model_folder, tmp_path, rows))
    assert (rows_seen.count, rows_seen.looked_at, rows_seen.ended) == (3, 3, 1.0)
    assert rows_seen.tokens == pytest.approx(sum(lengths) / 3) and rows_seen.scored == pytest.approx(sum(scored) / 3)
    assert rows_seen.longest_scored == max(scored)
    assert rows_seen.longest_prompt == max(n - s for n, s in zip(lengths, scored, strict=True))
    longest = sorted(lengths)[-1]
    cut = rows_of(make(model_folder, tmp_path, rows, max_length=longest - 1))
    assert cut.ended == pytest.approx(1 - lengths.count(longest) / 3)
    packed = rows_of(make(model_folder, tmp_path, rows, packing=True, max_length=64))
    assert packed.ended is None and (packed.count, packed.scored) == (1, sum(scored))
    assert (packed.longest_prompt, packed.longest_scored) == (rows_seen.longest_prompt, rows_seen.longest_scored)
    many = rows_of(make(model_folder, tmp_path, rows * 100))
    assert many.count == 300 and many.looked_at == 200 and many.scored == pytest.approx(sum(scored) / 3, rel=0.1)


def test_a_row_ends_where_a_template_writes_a_newline_behind_its_turns(model_folder, tmp_path):
    """SmolLM2's, Qwen's and others' do, so the last scored token is no stop token."""
    messages = [{"role": "user", "content": "One"}], [{"role": "assistant", "content": "two"}]
    rows = [dict(zip(("prompt", "completion"), messages, strict=True))]
    whole = rows_of(make(model_folder, tmp_path, rows, eos_token="<|im_end|>"))
    assert whole.ended == 1.0
    for cut, ended in ((1, 1.0), (2, 0.0)):  # the newline, and the stop token
        settings = {"eos_token": "<|im_end|>", "max_length": int(whole.tokens) - cut}
        assert rows_of(make(model_folder, tmp_path, rows, **settings)).ended == ended


def test_the_table_tells_the_objective_in_force(model_folder, tmp_path):
    rows = [{"prompt": "One", "completion": " two"}] * 8
    trainer = make(model_folder, tmp_path, rows, lambda_td=0.3, gamma=0.9, gradient_accumulation_steps=3)
    told = dict(describe(trainer, rows_of(trainer), max_steps=7))
    assert "lambda_td 0.3, td_scale measured at the first step, gamma 0.9" in told["objective"]
    assert told["steps"].startswith("7 of 8 rows, ")  # three times as many would be more than there are
    assert "100% of the rows end" in told["data"]
    trainer.objective = ValueConsistency(value_origin="reference")
    assert "lambda_td / td_scale * (V - gamma V')^2, V from the reference's, lambda_td 0.3, td_scale" in objective(
        trainer
    )
    likelihood = make(model_folder, tmp_path, rows, lambda_td=0)
    assert objective(likelihood) == "maximum likelihood (lambda_td 0)"
    likelihood.objective = ZLoss()
    shown = "z-loss: nll + z_loss_weight * (V - center)^2, z_loss_weight 0.0001, z_loss_center zero"
    assert objective(likelihood) == shown
    args = {"objective": "gem+soft_q", "gem_beta": 0.5, "td_weights": [1.0, 0.0, 1.0], "lambda_td_decay_steps": 4}
    said = objective(make(model_folder, tmp_path, rows, **args))
    assert said.startswith(
        "GEM and inverse soft-Q: sum_j q_j w_j (log pi_j - log pi), q = softmax(Q / gem_beta) + lam"
    )
    assert "gem_beta 0.5, gem_form linear, td_weights [1.0, 0.0, 1.0], lambda_td 0.1 and falls to 0 at step 4" in said
    plain = objective(make(model_folder, tmp_path, rows))
    assert plain.startswith("inverse soft-Q: nll + lambda_td / td_scale * r^2, lambda_td 0.1, td_scale")
    likelihood.objective = Objective()
    assert objective(likelihood).startswith(Objective.formula)
    total = sum(p.numel() for p in trainer.model.parameters())
    assert f"{total:,} of {total:,} weights trained" in told["model"]


def test_a_fall_ends_where_the_table_says(tmp_path):
    for warmup, rise in ((0, 0), (0, 1), (5, 0), (0, 4), (5, 4)):
        keys = {"mle_warmup_steps": warmup, "lambda_td_warmup_steps": rise, "lambda_td_decay_steps": 3}
        args = IRLConfig(str(tmp_path), **keys, **CPU)
        last = int(re.search(r" and falls to 0 at step (\d+)", schedule(args))[1])
        assert args.lambda_td_at(last) == 0 < args.lambda_td_at(last - 1)


def test_a_schedule_in_shares_is_told_in_steps(tmp_path):
    args = IRLConfig(str(tmp_path), mle_warmup_steps=0.1, lambda_td_warmup_steps=0.2, **CPU)
    assert schedule(args, 50) == "MLE for steps 0 to 4, then lambda_td rises to 0.1 at step 14"


@pytest.mark.parametrize("warmup, rise", [(0, 0), (5, 0), (0, 4), (5, 4), (0, 1)])
def test_the_schedule_is_the_one_that_trains(warmup, rise, tmp_path):
    args = IRLConfig(str(tmp_path), mle_warmup_steps=warmup, lambda_td_warmup_steps=rise, **CPU)
    told = schedule(args)
    if warmup:
        assert told.startswith(f"MLE for steps 0 to {warmup - 1}, then ")
        assert args.lambda_td_at(warmup - 1) == 0 < args.lambda_td_at(warmup)
    if match := re.search(r"rises to 0.1 at step (\d+)", told):
        last = int(match[1])
        assert args.lambda_td_at(last) == 0.1 > args.lambda_td_at(last - 1)
    else:
        assert args.lambda_td_at(warmup) == 0.1


def test_weights_are_those_of_the_model_also_where_they_are_packed_or_sharded():
    packed, sharded = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    packed.quant_state = type("State", (), {"shape": (16, 8)})()
    sharded.ds_numel = 1000
    assert weights([packed, sharded, torch.nn.Parameter(torch.zeros(3, 5))]) == 128 + 1000 + 15


@pytest.mark.parametrize("value", [0.0, 1e-9, -2e-5, 0.00123456, 0.5, 12.3456, -999.99, 12345.6, 1e8, 7, None])
def test_numbers_are_short_and_near(value):
    told = number(value)
    assert len(told) <= 11
    assert value is None or math.isclose(float(told.replace(",", "")), value, rel_tol=1e-2)


def test_a_bar_only_where_somebody_sees_it(model_folder, tmp_path, monkeypatch):
    trainer = make(model_folder, tmp_path, [{"prompt": "One", "completion": " two"}] * 8)
    arguments = irl.IRLScriptArguments(task="arithmetic")
    for seen in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda seen=seen: seen, raising=False)
        assert Terminal(trainer, arguments, "test").bars is seen


def test_tokens_are_counted_from_the_last_log_of_the_run_that_goes_on(model_folder, tmp_path, monkeypatch):
    trainer = make(model_folder, tmp_path, [{"prompt": "One", "completion": " two"}] * 8)
    terminal = Terminal(trainer, irl.IRLScriptArguments(task="arithmetic"), "test")
    trainer.state.log_history = [{"num_tokens": 5000, "step": 3}, {"eval_loss": 1.0, "step": 3}]
    trainer.state.global_step, seconds = 3, iter([10.0, 12.0])
    monkeypatch.setattr("trl_irl.commands.console.terminal.time.perf_counter", lambda: next(seconds))
    terminal.on_train_begin(trainer.args, trainer.state, trainer.control)
    header, line = terminal._log_lines(4, {"nll": 1.0, "num_tokens": 5100})
    assert header.split()[-1] == "tokens/s" and float(line.split()[-1]) == 50


def test_an_evaluation_shows_every_metric_of_the_users_own():
    logs = {
        "eval_loss": 1.0,
        "eval_timeliness": 0.5,
        "eval_meaning_mean_words": 2.0,
        "eval_runtime": 3.0,
        "epoch": 1.0,
    }
    logs |= {"eval_q_mean": 4.0, "eval_samples_per_second": 5.0, "eval_num_tokens": 6}
    assert evaluation_line(7, logs) == "    step 7: eval_loss 1, eval_timeliness 0.5, eval_meaning_mean_words 2"


def test_every_recipe_is_listed_with_its_hardware_and_a_program_that_reads_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [i for i, line in enumerate(lines) if not line.startswith(" ")]
    found = {}
    for i in heads:
        program, _, name = lines[i].partition(" --config ")
        found[find_recipe(name)] = program
        assert re.search(r"GPU|CPU|as irl_full", lines[i + 1]) and lines[i + 2].startswith("    ")
    assert set(found) == set(shipped_recipes().values())
    modules = {"irl": irl, "online-irl": online_irl, "gail": gail}
    for path, program in found.items():
        package, command = program.split()
        if package == "trl-irl" and command in modules:
            modules[command].make_parser().parse(["--config", str(path), "--bf16", "false", "--use_cpu", "true"])
        else:
            assert command in ("ppo", "reward", "sft", "rloo", "grpo"), (path, program)
    assert recipes.run(["--about", "tldr"]) == 0
    assert all("tldr" in line for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    assert recipes.run(["--about", "nothing"]) == 2 and "They are of arithmetic" in capsys.readouterr().err


def test_a_list_that_is_not_read_to_its_end():
    words = f"{shlex.quote(sys.executable)} -m trl_irl.cli recipes | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "" and result.stdout.count("\n") == 1


def test_first_help(capsys):
    assert cli(["help"]) == 0
    assert {"trl-irl demo", "trl-irl recipes"} & set(map(str.strip, capsys.readouterr().out.splitlines()))
    assert cli(["-V"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
    for typo, meant in {"evalute": "evaluate", "online_irl": "online-irl", "scor": "score"}.items():
        assert cli([typo]) == 2 and f"Did you mean `{meant}`?" in capsys.readouterr().err
    assert cli(["zzz"]) == 2 and "There are: irl, " in capsys.readouterr().err
