"""What a second look at the commands found: folders that are used again, names with signs in them, closed pipes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from tests.commands.test_irl import ROOT, write_recipe
from tests.conftest import make_model
from trl_irl.commands import average, chat, evaluate, irl, online_irl, reward_data, score
from trl_irl.commands.console.recipe_file import find_recipe
from trl_irl.evaluation.rendering import print_rows
from trl_irl.evaluation.scored_completions import with_other_columns
from trl_irl.evaluation.settings import named
from trl_irl.rewards.adapters import tokenizer_of
from trl_irl.tasks.columns import nested, prompt_from_columns, with_nested
from trl_irl.tasks.data import TaskData
from trl_irl.text.messages import as_messages
from trl_irl.trainer.runtime.checkpoints import newest_checkpoint
from trl_irl.trainer.runtime.models import check_no_other_adapter


PAIRS = "".join(json.dumps({"prompt": "Sky?", "completion": f" blue {i}"}) + "\n" for i in range(6))


@pytest.fixture
def recipe(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(PAIRS)

    def _recipe(**keys):
        fixed = {"task": None, "dataset_name": "rows.jsonl", "dataset_test_split": "train", "num_train_rows": None}
        fixed |= {"max_steps": 2, "output_dir": "run", "save_strategy": "no"}
        return ["--config", str(write_recipe(tmp_path, model_folder, **{**fixed, **keys}))]

    return _recipe


def test_all_weights_are_not_saved_beside_the_adapter_of_an_earlier_run(recipe, capfd):
    """Whoever loads the folder gets the adapter, whatever else is in it."""
    assert irl.run(recipe(use_peft=True, lora_r=2)) == 0
    assert irl.run(recipe(use_peft=True, lora_r=2)) == 0  # another adapter takes its place
    assert irl.run(recipe()) == 2
    assert "`output_dir: run` holds the adapter of an earlier run" in capfd.readouterr().err
    assert not os.path.exists("run/model.safetensors")


def test_a_folder_that_is_not_there_yet_is_no_question_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trl_irl.rewards.adapters._is_adapter_on_the_hub", lambda name: pytest.fail(f"asked for {name}")
    )
    check_no_other_adapter("outputs/new", make_model("llama"))
    check_no_other_adapter(str(tmp_path), make_model("llama"))


def test_a_model_without_a_tokenizer(recipe, model_folder, tmp_path, capfd):
    """transformers makes one of special tokens alone for some families, and every text is empty in it."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(model_folder / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match="`models: .*qwen` has no tokenizer"):
        tokenizer_of(str(folder), "models")
    assert score.run(["--model", str(folder), "--dataset_name", "rows.jsonl", "--split", "train"]) == 2
    assert irl.run(recipe(model_name_or_path=str(folder))) == 2
    assert capfd.readouterr().err.count("has no tokenizer") == 2
    assert not os.path.exists("run/model.safetensors")


def test_what_is_proposed_asks_as_the_training_did(recipe, capfd):
    assert irl.run(recipe(chat_format=True)) == 0
    proposed = [shlex.split(line) for line in capfd.readouterr().out.partition("Next:\n")[2].splitlines()]
    for words in proposed:
        assert ("--chat_format" in words) == (words[1] != "chat")


def test_checkpoints_of_several_runs(tmp_path):
    for i, step in enumerate((2, 4, 1)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        os.utime(folder / "trainer_state.json", (1000 + 60 * i,) * 2)
    with pytest.warns(UserWarning, match="checkpoint-4 has the most steps, and .*checkpoint-1 was written after it"):
        assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("module", [irl, online_irl], ids=["irl", "online_irl"])
def test_a_run_that_has_nothing_left_to_train_says_so_and_does_not(module, recipe, capfd):
    """In the middle of an epoch, where the Trainer would take one more step."""
    rows = [{"prompt": f"Row {i}", "completion": " one two"} for i in range(40)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = {"dataset_name": "many.jsonl", "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    keys |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 2}
    keys |= {} if module is irl else {"max_completion_length": 4}
    assert module.run(recipe(**keys)) == 0
    assert "Nothing was trained" not in capfd.readouterr().out
    weights = load_file("run/model.safetensors")
    for steps in (2, 1):
        assert module.run(recipe(**{**keys, "max_steps": steps}, resume_from_checkpoint=True)) == 0
        told = f"Nothing was trained: run/checkpoint-2 has 2 steps, and this run ends after {steps}."
        assert told in capfd.readouterr().out
        assert all(tensor.equal(weights[name]) for name, tensor in load_file("run/model.safetensors").items())
        assert json.loads(Path("run/trainer_state.json").read_text(encoding="utf-8"))["global_step"] == 2
        assert not Path("run/checkpoint-3").exists()


def test_one_file_has_nothing_held_out_and_the_way_out_is_told(recipe, capfd):
    words = recipe(dataset_test_split="validation", eval_strategy="steps", eval_steps=1)
    assert irl.run(words) == 2
    told = capfd.readouterr().err
    assert "`dataset_test_split: validation` is not among the dataset's splits, which are train" in told
    assert "`trl-irl prepare`" in told and '`eval_strategy: "no"`' in told
    assert irl.run([*words, "--eval_strategy", "no"]) == 0


def test_keys_that_are_true_say_so(capsys):
    with pytest.raises(SystemExit):
        irl.run(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for key in ("td_target_grad", "calculator_annotations", "eval_ds3_gather_for_generation"):
        of_key = told.partition(f" --{key} ")[2].partition(" --")[0]
        assert of_key.startswith("true|false ") and "(default: True)" in of_key, of_key


def test_help_of_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with pytest.raises(SystemExit) as stopped:
        average.run(["--help"])
    assert stopped.value.code == 0 and "--weights" in capsys.readouterr().out


def test_names_and_paths_with_a_sign_between(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/lr=1e-5", "plain"):
        (tmp_path / folder).mkdir(parents=True)
    models = ["tuned=runs/lr=1e-5", "runs/lr=1e-5", "a=b=plain", "base=Qwen/Qwen2.5-0.5B", "Qwen/Other"]
    assert named(models, "models") == {
        "tuned": "runs/lr=1e-5",
        "lr=1e-5": "runs/lr=1e-5",
        "a=b": "plain",
        "base": "Qwen/Qwen2.5-0.5B",
        "Other": "Qwen/Other",
    }


@pytest.mark.parametrize("modules", ["q_proj", "q_proj v_proj", "all-linear", r".*\.q_proj"])
def test_modules_to_adapt(modules, recipe, tmp_path):
    words = ["--lora_target_modules", *modules.split(), "--use_peft", "true", "--lora_r", "2"]
    assert irl.run([*recipe(), *words]) == 0
    targets = json.loads((tmp_path / "run/adapter_config.json").read_text())["target_modules"]
    expected = {"all-linear": 14, "q_proj v_proj": 2}.get(modules, 1)
    assert isinstance(targets, str) or len(targets) == expected
    assert irl.peft_config_of(ModelConfig(use_peft=False, lora_target_modules=["q_proj"])) is None


def started(module, *words):
    """A process whose output the test reads."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", module, *words], env=environment, **pipes)


@pytest.mark.any_trl
@pytest.mark.parametrize("command", [["irl", "--help-all"], ["help"], ["recipes"]])
def test_who_reads_the_first_line_alone(command):
    process = started("trl_irl.cli", *command)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.any_trl
def test_a_training_goes_on_where_nobody_reads_it_any_more(recipe, tmp_path):
    process = started("trl_irl.commands.irl", *recipe(max_steps=30))
    while not re.match(r" +\d+ +[\d.]", process.stdout.readline()):  # the first log
        assert process.poll() is None
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait() == 0 and "Traceback" not in told, told
    assert (tmp_path / "run/model.safetensors").is_file()


def test_names_in_a_table_are_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    names = ["outputs_run_with_a_long_name_first", "outputs_run_with_a_long_name_second"]
    print_rows([["model", "decoding", "accuracy"], *([name, "greedy", "50.0 %"] for name in names)], "Table")
    letters = re.sub(r"[^\w]", "", capsys.readouterr().out)
    assert "first" in letters and "second" in letters and "\u2026" not in letters


def test_what_is_proposed_of_an_average_can_be_pasted(model_folder, tmp_path, capsys):
    out = tmp_path / "an average"
    assert (
        average.run(
            ["--models", str(model_folder), str(model_folder), "--weights", "0.5", "0.5", "--output_dir", str(out)]
        )
        == 0
    )
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[words.index("--models") + 2] == f"averaged={out}"


def test_an_average_with_an_adapter_whose_base_has_moved(model_folder, tmp_path, capsys):
    base = shutil.copytree(model_folder, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    shutil.move(base, tmp_path / "moved")
    models = [str(tmp_path / "adapter"), str(tmp_path / "moved")]
    assert average.run(["--models", *models, "--weights", "0.5", "0.5", "--output_dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"An adapter's base, {base}, is not there" in told and "Merge" not in told


def test_a_column_whose_own_name_has_a_dot():
    assert nested({"a.b": 1, "a": {"b": 2}}, "a.b") == 1 and nested({"a": {"b": 2}}, "a.b") == 2


def test_a_nested_name_may_be_a_columns_own():
    assert with_nested({"a.b": 1, "c": 0}, "a.b", 2) == {"a.b": 2, "c": 0}
    assert with_nested({"a": {"b": 1}}, "a.b", 2) == {"a": {"b": 2}}


@pytest.mark.parametrize("name", ["my text", "my-text", "text", "a.b"])
def test_any_column_may_stand_in_a_template(name):
    row = {"question": "Q", name.split(".")[0]: {"b": "it"} if "." in name else "it"}
    data = TaskData(source_column="question", target_column="question", prompt_template="{source}: {" + name + "} {}")
    assert prompt_from_columns(row, data) == "Q: it {}"


def test_parts_of_a_message_may_say_nothing():
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": None}, {"type": "text"}]
    assert as_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "One"}]


def test_what_was_scored_twice_can_be_scored_again():
    table = Dataset.from_dict({"prompt": ["p"], "row": [7], "input_row": [8], "input_input_row": [9]})
    line = {"row": 0, "source": "x", "number": 0, "cut": False, "prompt": "p", "completion": "c", "sum": 1.0}
    found, renamed = with_other_columns([line], table)
    assert renamed == ["row"] and found["row"] == [0] and found["input_input_input_row"] == [7]
    assert found["input_row"] == [8] and found["input_input_row"] == [9]


def test_what_is_proposed_carves_off_the_rows_that_the_training_did(recipe, capfd):
    words = [*recipe(task="arithmetic", dataset_name=None, num_train_rows=8, task_seed=7), "--dataset_test_split"]
    assert irl.run([*words, "validation"]) == 0
    proposed = [shlex.split(line) for line in capfd.readouterr().out.partition("Next:\n")[2].splitlines()]
    for words in proposed:
        assert ("--task_seed" in words) == (words[1] != "chat")


def test_recipes_that_a_help_names_are_there():
    for module in (reward_data, irl, score, average):
        for name in re.findall(r"recipes/[\w/]+\.yaml", module.__doc__):
            assert (ROOT / name).is_file(), name


@pytest.mark.any_trl
@pytest.mark.parametrize(
    "words, closed", [("chat MODEL", "<&-"), ("recipes", ">&-"), ("--help", "2>&-"), ("recipes", "<&- >&- 2>&-")]
)
def test_streams_that_are_closed(words, closed, model_folder):
    """As those of a daemon or of cron are: Python has None for each."""
    command = f"{sys.executable} -m trl_irl.cli {words.replace('MODEL', shlex.quote(str(model_folder)))} {closed}"
    told = {} if "<" in closed else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, **told)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert bool(done.stdout) == (">&-" not in closed.split() and not words.startswith("chat"))


def test_a_model_without_a_tokenizer_is_told_so(recipe, model_folder, tmp_path, capfd):
    shutil.copytree(model_folder, tmp_path / "bare")
    for path in (tmp_path / "bare").glob("*tokenizer*"):
        path.unlink()
    keys = {"model_name_or_path": str(tmp_path / "bare")}
    for run in (lambda: irl.run(recipe(**keys)), lambda: chat.run([str(tmp_path / "bare"), "--prompt", "Sky?"])):
        assert run() == 2
        told = capfd.readouterr().err
        assert "bare` has no tokenizer: there is no file of one in the folder. Save one with it" in told
    assert not (tmp_path / "run").exists()


def test_what_an_interrupted_command_kept_is_there(tmp_path):
    for kept, told, folder in (
        (score._kept, SimpleNamespace(output=str(tmp_path / "x.parquet")), tmp_path / "x.parquet.parts"),
        (evaluate._kept, SimpleNamespace(output_dir=str(tmp_path / "e")), tmp_path / "e/cells"),
    ):
        assert kept(told) in ("Nothing was scored.", "Nothing was sampled.")
        folder.mkdir(parents=True)
        (folder / "one").touch()
        assert str(folder) in kept(told)


def test_a_recipe_that_is_misspelled_is_named():
    with pytest.raises(FileNotFoundError, match="Did you mean gsm8k/irl_lora?"):
        find_recipe("gsm8k/irl_lroa")
    with pytest.raises(FileNotFoundError, match="These are: .*gsm8k/irl_lora"):
        find_recipe("qqqqq")


def test_pairs_of_no_training_row_end_a_command_before_other_splits(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        Path("data").mkdir(exist_ok=True)
        Path(f"data/{split}.jsonl").write_text(PAIRS, encoding="utf-8")
    words = ["--task", "gsm8k", "--dataset_name", "data", "--source_column", "prompt", "--target_column", "completion"]
    assert reward_data.run([*words, "--output_dir", "pairs"]) == 2
    told = capfd.readouterr()
    assert "train: 0 pairs" in told.out and "validation" not in told.out
    assert "no solution of the train split ends in an answer to get wrong, such as `#### 72`" in told.err
