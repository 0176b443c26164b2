"""Every recipe and every accelerate config parses with the parser that reads it in earnest."""

from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from trl_irl.cli import accelerate_config_path, split_accelerate_config
from trl_irl.commands import irl, ppo
from trl_irl.commands.irl import make_parser


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
# A recipe for GPUs asks for bf16, which transformers refuses without a GPU unless the CPU is asked for too.
WITHOUT_GPU = [] if torch.cuda.is_available() else ["--use_cpu", "true"]
ACCELERATE_CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe(recipe):
    keys = yaml.safe_load(recipe.read_text())
    if recipe.stem.startswith("ppo"):
        pytest.importorskip("trl.experimental.ppo", reason="PPOTrainer is in TRL 1.12 only")
    parser = (ppo if recipe.stem.startswith("ppo") else irl).make_parser()
    arguments = parser.parse(["--config", str(recipe), *WITHOUT_GPU])
    script_args, training_args, *_ = arguments
    for key, value in keys.items():
        owner = next(x for x in arguments if hasattr(x, key))
        parsed = getattr(owner, key)
        assert getattr(parsed, "value", parsed) == ([] if value == "none" else value), key
    assert script_args.task is not None
    assert recipe.read_text().startswith("# Hardware: ")
    # "1e-5" without a dot is a string in YAML 1.1 and would only be caught by luck.
    assert isinstance(training_args.learning_rate, float)


def test_recipes_were_found():
    assert {path.parent.name for path in RECIPES} >= {"arithmetic", "gsm8k"} and len(RECIPES) >= 7


@pytest.mark.parametrize(
    "mle, irl", [("gsm8k/mle.yaml", "gsm8k/irl_full.yaml"), ("arithmetic/mle.yaml", "arithmetic/irl.yaml")]
)
def test_mle_recipes_differ_in_the_objective_alone(mle, irl):
    mle, irl = (yaml.safe_load((ROOT / "recipes" / name).read_text()) for name in (mle, irl))
    objective = {"lambda_td", "mle_warmup_steps", "lambda_td_warmup_steps", "gamma", "terminal_value", "output_dir"}
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
