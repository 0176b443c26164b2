"""Recipes as people write them: YAML's traps, keys of earlier versions, names from anywhere; each read or told."""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest

from trl_irl import IRLConfig
from trl_irl.commands import evaluate, gail, irl, online_irl
from trl_irl.commands.console.old_keys import REPLACED
from trl_irl.commands.console.parser import RecipeParser
from trl_irl.commands.console.recipe_file import find_recipe, read_recipe, shipped_recipes


ROOT = Path(__file__).parents[2]


@dataclass
class Arguments:
    rate: float = 0.1
    steps: int = 3
    word: str = "a"
    perhaps: float | None = None
    flag: bool = False
    strategy: str = field(default="no", metadata={"choices": ["no", "steps"]})
    names: list[str] = field(default_factory=list)
    numbers: list[float] | None = None
    told: dict | str | None = None


def parsed(text, tmp_path, *words):
    (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (arguments,) = RecipeParser((Arguments,), prog="x").parse(["--config", str(tmp_path / "recipe.yaml"), *words])
    return arguments


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("rate: 1e-6", "rate", 1e-6),
        ("told: {min_lr: 1e-6, power: 2E+3, deep: [1e3, .5, -1e-2]}", "told", None),
        ("strategy: no", "strategy", "no"),
        ("word: off", "word", "off"),
        ("word: 12:30", "word", "12:30"),
        ("word: 2024-01-01", "word", "2024-01-01"),
        ("word: '007'", "word", "007"),
        ("steps: 010", "steps", 10),
        ("steps: 1_000", "steps", 1000),
        ("flag: on", "flag", True),
        ("flag: off", "flag", False),
        ("flag: yes", "flag", True),
        ("flag: true", "flag", True),
        ("perhaps: null", "perhaps", None),
        ("names: one", "names", ["one"]),
        ("names: [one, two]", "names", ["one", "two"]),
        ("numbers: 0.5", "numbers", [0.5]),
        ("numbers: 1e-1", "numbers", [0.1]),
        ("numbers: [1, 2e0]", "numbers", [1, 2.0]),
        ("\ufeffrate: 0.5", "rate", 0.5),
        ("word: café", "word", "café"),
        ("rate: &a 0.25\nperhaps: *a", "perhaps", 0.25),
    ],
)
def test_what_is_meant(text, key, value, tmp_path):
    if key == "told":
        value = {"min_lr": 1e-6, "power": 2000.0, "deep": [1000.0, 0.5, -0.01]}
    found = getattr(parsed(text, tmp_path), key)
    assert found == value and type(found) is type(value)


def test_null_on_the_command_line_unsets_what_the_recipe_sets(tmp_path):
    recipe = "perhaps: 2.0\nnumbers: [1, 2]\ntold: {a: 1}\nword: b\n"
    found = parsed(recipe, tmp_path, "--perhaps", "null", "--numbers=null", "--told", "null", "--rate", "0.5")
    assert (found.perhaps, found.numbers, found.told, found.rate) == (None, None, None, 0.5)
    assert parsed(recipe, tmp_path, "--perhaps", "1.0", "--rate", "2", "--perhaps", "null").perhaps is None
    assert parsed(recipe, tmp_path, "--perhaps", "null", "--perhaps", "1.0").perhaps == 1.0
    (tmp_path / "recipe.yaml").write_text("task: gsm8k\ntd_scale: 2.0\nuse_cpu: true\nbf16: false\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path), "--task", "null"]
    data, args, *_ = irl.make_parser().parse([*words, "--td_scale", "null"])
    assert data.task is None and args.td_scale is None


def test_null_of_a_key_that_cannot_be_nothing_is_its_default(tmp_path):
    recipe = "rate: 0.5\nsteps: 7\nflag: true\nstrategy: no\nword: b\nnames: [x, y]\n"
    nulls = [word for key in ("rate", "steps", "flag", "strategy", "names") for word in (f"--{key}", "null")]
    found, fresh = parsed(recipe, tmp_path, *nulls), parsed("word: a", tmp_path)
    assert found.word == "b" and {**vars(found), "word": fresh.word} == vars(fresh)
    assert parsed(recipe, tmp_path, "--word", "null").word == fresh.word
    assert parsed(recipe, tmp_path, "--rate", "null", "--rate", "2").rate == 2.0
    assert parsed(recipe, tmp_path, "--rate", "2", "--rate=null").rate == fresh.rate


@pytest.mark.parametrize("name", ["arithmetic/irl", "gsm8k/irl_lora", "e2e/irl_smollm2"])
def test_a_recipe_of_another_objective_on_the_command_line(name, tmp_path):
    """As the page of objectives says it."""
    schedule = ("lambda_td", "td_scale", "terminal_value", "mle_warmup_steps", "lambda_td_warmup_steps")
    words = ["--config", str(ROOT / f"recipes/{name}.yaml"), "--objective", "z_loss", "--use_cpu", "true"]
    for key in schedule:
        words += [f"--{key}", "null"]
    args = irl.make_parser().parse([*words, "--bf16", "false", "--output_dir", str(tmp_path)])[1]
    fresh = IRLConfig("x", use_cpu=True, bf16=False)
    assert args.objective == "z_loss" and all(getattr(args, key) == getattr(fresh, key) for key in schedule)


def test_hyphens(tmp_path):
    """As argparse has them on the command line."""
    (tmp_path / "recipe.yaml").write_text("learning-rate: 1e-3\nlambda-td: 0.5\nuse-cpu: true\nbf16: false\n")
    _, args, *_ = irl.make_parser().parse(
        ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    )
    assert args.learning_rate == 1e-3 and args.lambda_td == 0.5


@pytest.mark.parametrize(
    "text, message",
    [
        ("rate: null", "`rate: null` sets nothing"),
        ("word: ~", "`word: null` sets nothing"),
        ("rate: 1\nword: b\nrate: 2", "`rate` is set twice, in lines 1 and 3"),
        ("told: {a: 1, a: 2}", "`a` is set twice, in lines 1 and 1"),
        ("told: min_lr=1", "`told: min_lr=1` takes a mapping"),
        ("rate: .nan", "`rate: nan` is no number that it can be"),
        ("rate: .inf", "`rate: inf` is no number that it can be"),
        ("numbers: [1, .nan]", "`numbers: nan` is no number"),
        ("steps: 1.5", "`steps: 1.5` is not a whole number"),
        ("steps: yes", "`steps: yes` is not a whole number"),
        ("numbers: [1, x]", "`numbers: x` is not a number"),
        ("rate: [1]", "`rate: [1]` is not a number"),
        ("flag: perhaps", "`flag: perhaps` is not true or false"),
        ("strategy: often", "`strategy: often` is not among its choices"),
        ("wrod: a", "unknown key `wrod`; did you mean `word`?"),
        ("rate: 1\nwrod: a\nsteps: many", "unknown key `wrod`"),
        ("env: 3", "`env` takes a mapping"),
        (b"word: caf\xe9", "is not UTF-8 text: line 1 has the byte 0xe9"),
        (b"a: 1\n\xff\xfe", "is not UTF-8 text: line 2 has the byte 0xff"),
        ("", "is empty"),
        ("- a", "holds list and no keys"),
        ("rate", "holds str and no keys"),
        ("rate: [1", "is not plain YAML"),
        ("\tx: 1", "is not plain YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not plain YAML"),
        ("[1, 2]: x", "a key must be a word"),
    ],
)
def test_what_is_told(text, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(text, tmp_path)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rate", "nan"], "`rate: nan` is no number"),
        (["--numbers", "1", "inf"], "`numbers: inf` is no number"),
        (["--told", "x=1"], "`told: x=1` takes a mapping"),
        (["other.yaml"], "A recipe is `--config other.yaml`."),
        (["--config", "elsewhere.yaml"], "takes one recipe file"),
    ],
)
def test_the_same_on_the_command_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("rate: 1", tmp_path, *words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ("--models x --temperatures nan", "`temperatures: nan`"),
        ("--models x --temperatures 0 inf", "`temperatures: inf`"),
        ("--models x --top_p nan", "`top_p: nan`"),
        ("--models x --gamma 2", "`gamma: 2.0` is out of range"),
        ("--models x --gamma -0.5", "`gamma: -0.5` is out of range"),
    ],
)
def test_numbers_that_cannot_be(words, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.make_parser().parse([*words.split(), "--dataset_name", "x"])
    assert message in capsys.readouterr().err


COMMANDS = [irl, online_irl, gail]


def known(module):
    return {action.dest for action in module.make_parser()._actions}


@pytest.mark.parametrize("old", REPLACED)
def test_keys_of_earlier_versions(old, capsys, tmp_path):
    """On each TRL: the old key is gone, the new one is there, in one of the commands at least."""
    commands = [*COMMANDS, evaluate]
    if version("trl") < "1.13":
        from trl_irl.commands import ppo

        commands.append(ppo)
    new, how = REPLACED[old]
    takers = [module for module in commands if old not in known(module) and (new is None or new in known(module))]
    if not takers and new in ("stop_token", "kl_coef", "num_ppo_epochs", "missing_eos_penalty", "reward_model_path"):
        pytest.skip("a key of PPO, which this TRL does not have")
    assert takers
    with pytest.raises(SystemExit):
        takers[0].make_parser().parse([f"--{old}", "1", "--output_dir", str(tmp_path)])
    told = capsys.readouterr().err
    assert f"unknown key `{old}`" in told and how in told
    assert (f"it is called `{new}` now" in told) if new else ("it is gone" in told)


def test_the_launchers_device_is_the_runs(monkeypatch, tmp_path):
    """`--accelerate_config cpu` reaches the arguments; what the recipe says stands above it."""
    words = ["--output_dir", str(tmp_path / "run")]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _, args, *_ = irl.make_parser().parse(words)
    assert args.use_cpu and args.bf16
    (tmp_path / "recipe.yaml").write_text("use_cpu: false\nbf16: false\n")
    _, args, *_ = irl.make_parser().parse([*words, "--config", str(tmp_path / "recipe.yaml")])
    assert not args.use_cpu
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    _, args, *_ = irl.make_parser().parse([*words, "--bf16", "false"])
    assert not args.use_cpu


def test_recipes_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = ROOT / "recipes/gsm8k/irl_lora.yaml"
    for name in ("recipes/gsm8k/irl_lora.yaml", "gsm8k/irl_lora", "./recipes/gsm8k/irl_lora.yaml"):
        assert find_recipe(name).samefile(expected)
    Path("recipes/gsm8k").mkdir(parents=True)
    Path("recipes/gsm8k/irl_lora.yaml").write_text("own: 1", encoding="utf-8")
    assert read_recipe("recipes/gsm8k/irl_lora.yaml") == {"own": 1}  # the user's own comes first
    with pytest.raises(FileNotFoundError, match="no recipe that comes with trl-irl has that name.*gsm8k/irl_lora"):
        find_recipe("gsm8k/irl_lorra")
    with pytest.raises(ValueError, match="is a folder"):
        find_recipe("recipes")
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.yaml")}
    assert set(shipped_recipes()) == there and len(there) > 10


@pytest.mark.any_trl
def test_recipes_of_an_installed_wheel(tmp_path):
    """Laid out as pyproject.toml has a wheel laid out, read from another folder, without the checkout."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    (package,) = built["targets"]["wheel"]["packages"]
    shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, place in built["targets"]["wheel"]["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / "site" / place)
    code = "from trl_irl.commands.console import recipe_file; print(recipe_file.find_recipe('gsm8k/irl_lora'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == tmp_path / "site/trl_irl/recipes/gsm8k/irl_lora.yaml"
