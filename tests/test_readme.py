"""The README is short; its first Python block runs; keys and files that it and the docs name exist."""

import dataclasses
import json
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from benchmarks.demo_picture import draw
from tests.conftest import make_model
from trl_irl import GAILConfig, IRLConfig
from trl_irl.cli import _LAUNCH_KEYS
from trl_irl.commands.evaluate import EvaluateArguments
from trl_irl.commands.irl import make_parser
from trl_irl.commands.prepare import PrepareArguments
from trl_irl.commands.reward_data import RewardDataArguments
from trl_irl.commands.score import ScoreArguments
from trl_irl.evaluation.callback import GenerationArguments


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
READMES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
KEYS = {option[2:] for option in make_parser()._option_string_actions if option.startswith("--")}
EVALUATE_KEYS = {field.name for field in dataclasses.fields(EvaluateArguments)}
PREPARE_KEYS = {field.name for field in dataclasses.fields(PrepareArguments)}
REWARD_DATA_KEYS = {field.name for field in dataclasses.fields(RewardDataArguments)}
SCORE_KEYS = {field.name for field in dataclasses.fields(ScoreArguments)}

SANKYDE = """exp_name seed cuda run_name load_from_cache_file deepspeed run_eval eval_every monitor gamma lambda_td
lambda_kl use_kl use_mle use_irl mle_steps_before_irl eps lr optimizer scheduler warm_up_steps world_size
num_train_epochs num_updates gradient_accumulation_steps local_micro_batch_size total_episodes micro_batch_size
local_batch_size batch_size local_eval_batch_size base_model query_dataset response_length truncate_token
truncate_token_id temperature eval_num_samples track wandb_project_name wandb_entity push_to_hub hf_entity hf_repo_id
hf_repo_revision hf_repo_url output_dir""".split()


def test_it_is_read_in_some_minutes():
    assert len(README.splitlines()) <= 220 and "docs/assets/demo_dark.svg" in README


def test_every_page_is_in_the_navigation():
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r": (\w+)\.md$", told, re.M)) == set(DOCS)


def test_the_first_code_is_the_readmes_on_the_page_too():
    first = re.compile(r"```python\n.*?```", re.S)
    assert first.search(README)[0] == first.search(DOCS["start"])[0]


def test_the_picture_is_of_the_numbers_that_the_results_give(tmp_path):
    cells = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    for theme in ("light", "dark"):
        draw(cells, theme, tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_bytes() == (ROOT / f"docs/assets/demo_{theme}.svg").read_bytes()


def test_quick_start_runs(tokenizer, tmp_path, monkeypatch):
    """As printed, but for the model and the dataset, which would be downloaded, and the device."""
    make_model("qwen2").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two three"}]}] * 4
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: Dataset.from_list(rows))
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(code.strip().splitlines()) <= 12
    code = code.replace('"Qwen/Qwen2.5-0.5B"', '"model"')
    code = code.replace("max_length=512", "max_length=512, use_cpu=True, bf16=False, max_steps=1, report_to='none'")
    namespace = {}
    exec(code, namespace)
    assert namespace["trainer"].state.global_step == 1


def test_table_of_keys_gives_the_defaults():
    fields = [*dataclasses.fields(IRLConfig), *dataclasses.fields(GenerationArguments)]
    defaults = {field.name: field.default for field in fields}
    gail = {field.name: field.default for field in dataclasses.fields(GAILConfig)}
    for text, known, count in ((DOCS["offline"] + DOCS["training"], defaults, 19), (DOCS["gail"], gail, 14)):
        rows = re.findall(r"^\| `(\w+)` \| `?\"?([\w.-]+)\"?`? \|", text, re.M)
        assert len(rows) == count
        for name, value in rows:
            assert str(known[name]).lower() == value or float(value) == known[name]


def test_the_function_of_ones_own_scores():
    code = re.search(r"```python\n# my_module.py.*?\n(.*?)```", DOCS["evaluating"], re.S)[1]
    namespace = {}
    exec(code, namespace)
    assert namespace["score"]("The Fox jumps.", {"summary": "fox jumps"}) == {"says_it": True, "words": 3}


@pytest.mark.parametrize("argument", SANKYDE)
def test_table_from_sankyde_names_every_argument(argument):
    table = DOCS["migrating"].split("## From sankyde/IRL")[1].split("\n## ")[0]
    left = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert f"`{argument}`" in left


@pytest.mark.parametrize(
    "part",
    "Agent value_network RewardModel PairwiseLoss PairDataset PromptDataset RLHFTrainer RLHFConfig epsilon ent_coef "
    "vf_coef create_reference_model generate train_reward.yaml".split(),
)
def test_table_from_instruct_goose_names_every_part(part):
    table = DOCS["migrating"].split("## From InstructGoose")[1].split("\n## ")[0]
    left = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert part in left
    for question in ("value loss", "value network", "advantage"):
        assert question in table


def test_keys_named_in_the_table_exist():
    table = DOCS["migrating"].split("## From sankyde/IRL")[1].split("\n## ")[0]
    right = " ".join(line.split("|")[2] for line in table.splitlines() if line.startswith("| `"))
    named = {word.split(":")[0] for word in re.findall(r"`([a-z_]+(?:: \w+)?)`", right)}
    # of the launcher, of the generation, of other places
    elsewhere = {"num_processes", "max_new_tokens", "zero2", "zero3", "env", "trackio", "tensorboard", "deepspeed"}
    elsewhere |= {"true"}
    assert named - elsewhere <= KEYS


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_are_there(readme):
    text = readme.read_text()
    for name in re.findall(r"(?:recipes|accelerate_configs|benchmarks)/[\w/]+\.(?:yaml|py|md)", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (readme.parent / name).exists(), name


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_keys_in_commands_exist(readme):
    text = readme.read_text().replace("\\\n", " ")  # a command over several lines
    for command, known in (
        ("irl", KEYS),
        ("evaluate", EVALUATE_KEYS),
        ("prepare", PREPARE_KEYS),
        ("score", SCORE_KEYS),
        ("reward-data", REWARD_DATA_KEYS),
    ):
        commands = " ".join(re.findall(rf"trl-irl {command} [^`\n]*", text))
        for key in re.findall(r"--(\w+)", commands):
            assert key in known | {"config", "accelerate_config", "config_file", *_LAUNCH_KEYS}, key
