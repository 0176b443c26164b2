"""Every recipe and every accelerate config parses with the parser that reads it in earnest."""

import importlib
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl.scripts import grpo, reward, rloo, sft

from trl_irl import cli
from trl_irl.cli import accelerate_config_path, split_accelerate_config, split_launch_keys
from trl_irl.commands import gail, irl, online_irl, ppo
from trl_irl.commands.irl import make_parser
from trl_irl.rewards import from_environment


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
# A recipe for GPUs asks for bf16, which transformers refuses without a GPU unless the CPU is asked for too.
WITHOUT_GPU = [] if torch.cuda.is_available() else ["--use_cpu", "true"]
ACCELERATE_CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


TRL_SCRIPTS = {"sft": sft, "reward": reward, "rloo": rloo, "grpo": grpo}


def parse(recipe, words=()):
    """By the command that reads a recipe of this name in earnest."""
    words = ["--config", str(recipe), *WITHOUT_GPU, *words]
    if recipe.stem in TRL_SCRIPTS:  # its command would ignore a key it does not know; here it is an error
        return TRL_SCRIPTS[recipe.stem].make_parser().parse_args_and_config(words, fail_with_unknown_args=True)
    if recipe.stem.startswith("ppo"):
        pytest.importorskip("trl.experimental.ppo", reason="PPOTrainer is in TRL 1.12 only")
        return ppo.make_parser().parse(words)
    if recipe.stem.startswith("gail"):
        return gail.make_parser().parse(words)
    if recipe.stem.startswith("online_irl"):
        return online_irl.make_parser().parse(words)
    return irl.make_parser().parse(words)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no demo has left the models that recipes name
    monkeypatch.setattr(os, "environ", dict(os.environ))  # `env` in a recipe is for its own process
    from_environment._reward.cache_clear()
    keys = yaml.safe_load(recipe.read_text())
    arguments = parse(recipe)
    script_args, training_args, *_ = arguments
    for name, value in keys.pop("env", {}).items():
        assert yaml.safe_load(os.environ[name]) == value
    for key, value in keys.items():
        owner = next(x for x in arguments if hasattr(x, key))
        parsed = getattr(owner, key)
        assert getattr(parsed, "value", parsed) == ([] if key == "report_to" else value), key
    assert getattr(script_args, "task", None) or script_args.dataset_name
    for function in getattr(script_args, "reward_funcs", None) or ():
        module, _, name = function.rpartition(".")
        if name not in ("soft_q_reward", "preference_reward"):
            assert callable(getattr(importlib.import_module(module), name))
        else:  # built when it is looked up, from a model that is not there
            with pytest.raises((OSError, ValueError), match="outputs/"):
                getattr(importlib.import_module(module), name)
    assert recipe.read_text().startswith("# Hardware: ")
    # "1e-5" without a dot is a string in YAML 1.1 and would only be caught by luck.
    assert isinstance(training_args.learning_rate, float)


LARGER = [
    (recipe, line.split("ZeRO-3: ")[1].split())
    for recipe in RECIPES
    for line in recipe.read_text().splitlines()[1:2]
    if line.startswith("# Several, ZeRO-3: ")
]


@pytest.mark.parametrize("recipe, words", LARGER, ids=[f"{recipe.parent.name}/{recipe.stem}" for recipe, _ in LARGER])
def test_what_a_recipe_says_of_several_gpus(recipe, words, monkeypatch):
    """The second line of a recipe, if it names what to override for ZeRO-3."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    one, several = parse(recipe), parse(recipe, words)
    for word, value in zip(words[::2], words[1::2], strict=True):
        key = word.removeprefix("--")
        before, after = (getattr(next(x for x in found if hasattr(x, key)), key) for found in (one, several))
        assert str(before) != str(after) and type(after)(yaml.safe_load(value)) == after


T5 = {"t5_mle", "t5_entropy", "t5_irl"}
RLHF = {"sft", "irl", "reward", "ppo_full", "ppo_lora", "rloo", "grpo"}


@pytest.mark.parametrize(
    "folder, stages",
    [
        ("arithmetic", RLHF | {"online_irl", "gail"}),
        ("tldr", RLHF | {"online_irl", "gail", *T5}),
        ("hh", RLHF),
        ("gsm8k", {"online_irl_lora", "gail_lora", "irl_smollm2", "mle_smollm2", *T5}),
        ("xsum", {"irl_pythia", *T5}),
        ("wmt22", {"irl_qwen", *T5}),
        ("e2e", {"mle_smollm2", "irl_smollm2", "irl_lora_smollm2", "online_irl_smollm2", "irl_lora", "irl_full"}),
    ],
)
def test_every_stage_has_a_recipe(folder, stages):
    assert stages <= {path.stem for path in RECIPES if path.parent.name == folder}
    told = (ROOT / "recipes" / folder / "README.md").read_text()
    assert all(f"recipes/{folder}/{stage}.yaml" in told for stage in stages)


def test_recipes_were_found():
    assert {path.parent.name for path in RECIPES} >= {"arithmetic", "e2e", "gsm8k", "hh", "tldr"} and len(LARGER) >= 10


@pytest.mark.parametrize(
    "mle, irl",
    [
        ("gsm8k/mle.yaml", "gsm8k/irl_full.yaml"),
        ("arithmetic/mle.yaml", "arithmetic/irl.yaml"),
        *((f"{task}/mle_smollm2.yaml", f"{task}/irl_smollm2.yaml") for task in ("e2e", "gsm8k", "arithmetic")),
    ],
)
def test_mle_recipes_differ_in_the_objective_alone(mle, irl):
    mle, irl = (yaml.safe_load((ROOT / "recipes" / name).read_text()) for name in (mle, irl))
    objective = {"lambda_td", "td_scale", "mle_warmup_steps", "lambda_td_warmup_steps", "gamma", "terminal_value"}
    objective.add("output_dir")
    assert mle["lambda_td"] == 0 < irl["lambda_td"]
    assert {k: v for k, v in mle.items() if k not in objective} == {k: v for k, v in irl.items() if k not in objective}


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=lambda path: path.stem)
def test_accelerate_config(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert path.read_text().startswith("# ")
    assert accelerate_config_path(path.stem).samefile(path)
    assert accelerate_config_path(str(path)).samefile(path)


def test_accelerate_configs_were_found():
    names = {path.stem for path in ACCELERATE_CONFIGS}
    assert names == {"cpu", "single_gpu", "ddp", "zero2", "zero3", "fsdp2"}


def test_unknown_accelerate_config():
    with pytest.raises(FileNotFoundError, match="zero3"):
        accelerate_config_path("zero4")


def test_accelerate_config_is_taken_out_of_the_command_line():
    assert split_accelerate_config(["--a", "1", "--accelerate_config", "cpu", "--b"]) == ("cpu", ["--a", "1", "--b"])
    assert split_accelerate_config(["--accelerate_config=x.yaml"]) == ("x.yaml", [])
    with pytest.raises(ValueError, match="needs a name"):
        split_accelerate_config(["--accelerate_config"])


def test_what_is_the_launchers_is_taken_out_of_the_command_line(monkeypatch, capsys, tmp_path):
    words = ["--a", "1", "--num_machines", "2", "--machine_rank=1", "--main_process_ip", "n1", "--learning_rate", "2"]
    taken = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "n1"]
    assert split_launch_keys(words) == (taken, ["--a", "1", "--learning_rate", "2"])
    for words in (["--num_processes"], ["--num_processes", "--a"]):
        with pytest.raises(ValueError, match="`--num_processes` needs a value"):
            split_launch_keys(words)
    launched = []
    monkeypatch.setattr("trl_irl.cli._launch", lambda words: launched.append(words) or 0)
    assert cli.main(["irl", "--config", "x", "--accelerate_config", "ddp", "--num-processes", "2"]) == 0
    (words,) = launched
    assert words[0] == "--config_file"
    assert words[2:] == ["--num-processes", "2", "-m", "trl_irl.commands.irl", "--config", "x"]
    for key in ("--num_processes", "--num_machines"):  # accelerate would start one process, on each machine for itself
        assert cli.main(["irl", "--config", "x", "--accelerate_config", "single_gpu", key, "2"]) == 2
    assert "which is for one process" in capsys.readouterr().err and len(launched) == 1
    words = ["irl", "--config", "x", "--num_processes", "2"]
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert cli.main(words) == 2 and "without `--accelerate_config`, and there is no GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert cli.main(words) == 0 and len(launched) == 2


def test_what_an_accelerate_config_says_to_a_command_of_one_process(monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(
        "runpy.run_module", lambda *args, **kwargs: begun.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    argv = list(sys.argv)
    try:
        for words in ([], ["--accelerate_config", "single_gpu"], ["--accelerate_config", "cpu"]):
            assert cli.main(["evaluate", "--models", "x", *words]) == 0
        assert sys.argv[1:] == ["--models", "x"]
    finally:
        sys.argv[:] = argv
    assert begun == ["1", "1", ""]
    assert cli.main(["evaluate", "--models", "x", "--accelerate_config", "zero3"]) == 2
    assert "is for several processes, and `trl-irl evaluate` is one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra, message",
    [
        ("lerning_rate: 1.0e-4", "unknown key `lerning_rate`; did you mean `learning_rate`?"),
        ("lambda_dt: 0.1", "unknown key `lambda_dt`; did you mean `lambda_td`?"),
        ("lambda_td: -1", "lambda_td=-1"),
        ("gamma: 1.5", "gamma=1.5"),
        ("terminal_value: one", "terminal_value: one"),
        ("task: gsm9k", "gsm9k"),
    ],
)
def test_bad_keys_in_a_recipe(extra, message, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path / 'run'}\nuse_cpu: true\nbf16: false\n{extra}\n")
    with pytest.raises(SystemExit) as exit:
        make_parser().parse(["--config", str(recipe)])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--lamda_td", "1"], "unknown key `lamda_td`; did you mean `lambda_td`?"),
        (["--learning_r", "1"], "unknown key `learning_r`; did you mean `learning_rate`?"),  # argparse would guess
        (["lambda_td", "1"], "unexpected words"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_words_on_the_command_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        make_parser().parse(["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", *words])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_command_line_overrides_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nlambda_td: 0.2\ngamma: 0.9\n")
    _, training_args, *_ = make_parser().parse(["--config", str(recipe), "--lambda_td", "0.3"])
    assert (training_args.lambda_td, training_args.gamma) == (0.3, 0.9)


def test_as_many_rows_per_step_on_eight_gpus():
    """What a recipe's second line overrides there keeps the batch, and with it the steps of an epoch."""
    seen = 0
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        if several := re.search(r"^# Several, ZeRO-3: (.*)$", text, re.MULTILINE):
            told = dict(re.findall(r"--(\w+) (\S+)", several[1]))
            keys = yaml.safe_load(text)
            names = ("per_device_train_batch_size", "gradient_accumulation_steps")
            one = math.prod(keys.get(name, 1) for name in names)
            eight = 8 * math.prod(int(told.get(name, keys.get(name, 1))) for name in names)
            assert one == eight, path
            seen += 1
    assert seen > 20


def test_a_recipe_for_several_gpus_says_how_to_divide_its_batch():
    offered = set()
    for readme in sorted((ROOT / "recipes").glob("*/README.md")):
        for config, behind in re.findall(
            r"--config (recipes/\S+\.yaml) (.*?)(?=\n\n|\n\d+\. )", readme.read_text(), re.DOTALL
        ):
            if "with `zero3`" in " ".join(behind.split()):
                offered.add(config)
    assert len(offered) >= 4
    for config in sorted(offered):
        assert "# Several, ZeRO-3: " in (ROOT / config).read_text(encoding="utf-8"), config


# Of the model that a folder's recipes start from: layers, key and value heads, numbers per head.
HEADS = {"tldr": (24, 16, 64), "hh": (24, 2, 64)}  # Pythia-410M, Qwen2.5-0.5B-Instruct


@pytest.mark.parametrize("folder", HEADS)
@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_keys_and_values_of_what_is_sampled_at_a_time_have_room(folder, method):
    """TRL samples a whole step's completions in one call where `steps_per_generation` is unset, and in float32."""
    keys = yaml.safe_load((ROOT / "recipes" / folder / f"{method}.yaml").read_text(encoding="utf-8"))
    rows = keys["per_device_train_batch_size"] * keys.get("steps_per_generation", keys["gradient_accumulation_steps"])
    tokens = 512 + keys["max_completion_length"]  # as long as `prepare` leaves prompts
    layers, heads, size = HEADS[folder]
    assert rows % keys["num_generations"] == 0
    assert 4 * 2 * layers * heads * size * tokens * rows < 8 * 2**30  # of 24 GB, beside policy and reward model
