"""What is wrong in a recipe ends the command with one message that names the key, its value and the way out."""

import json

import pytest

from tests.commands.test_irl import write_recipe
from trl_irl.commands import irl


ROW = {"prompt": "What is 1 + 1?", "completion": " 2"}


def file(name, *rows):
    """`dataset_name` of a file with these rows (or these words)."""

    def write(folder):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (folder / name).write_text(text)
        return {"task": None, "num_train_rows": None, "dataset_name": str(folder / name)}

    return write


def model(*files):
    """`model_name_or_path` of a folder with these files, all of them empty objects."""

    def write(folder):
        (folder / "model").mkdir()
        for name in files:
            (folder / "model" / name).write_text("{}")
        return {"model_name_or_path": str(folder / "model")}

    return write


def a_file(key, below=""):
    """A path that is a file, or below a file, as `key`."""

    def write(folder):
        (folder / "taken").write_text("of the user")
        return {key: str(folder / "taken") + below}

    return write


LORA = {"use_peft": True}
BAD = {
    "misspelled key": ({"lerning_rate": 1.0}, "`lerning_rate`; did you mean `learning_rate`?"),
    "key of nothing": ({"qqq": 1}, "unknown key `qqq`"),
    "lambda_td < 0": ({"lambda_td": -0.1}, "`lambda_td=-0.1`", "Set it to 0"),
    "lambda_td nan": ({"lambda_td": float("nan")}, "`lambda_td=nan`", "Set it to 0"),
    "lambda_td inf": ({"lambda_td": "1e400"}, "`lambda_td=inf`", "must be finite"),
    "lambda_td list": ({"lambda_td": [1]}, "`lambda_td: [1]` is not a number"),
    "lambda_kl < 0": ({"lambda_kl": -1.0}, "`lambda_kl=-1.0`", "Set it to 0"),
    "gamma > 1": ({"gamma": 1.5}, "`gamma=1.5`", "from 0", "to 1"),
    "gamma comma": ({"gamma": "1,0"}, "`gamma: 1,0` is not a number", "between 0 and 1"),
    "terminal_value": ({"terminal_value": "one"}, "`terminal_value: one`", "zero, mask"),
    "mle_warmup_steps": ({"mle_warmup_steps": -1}, "`mle_warmup_steps=-1`", "0 or more"),
    "lambda_td_warmup_steps": ({"lambda_td_warmup_steps": -1}, "`lambda_td_warmup_steps=-1`", "0 or more"),
    "logit_buffer_mb": ({"logit_buffer_mb": 0}, "`logit_buffer_mb=0", "128 suits"),
    "logit_buffer_mb word": ({"logit_buffer_mb": "much"}, "`logit_buffer_mb=much`", "'auto'"),
    "nan_policy": ({"nan_policy": "ignore"}, "`nan_policy: ignore`", "stop, skip"),
    "loss_type": ({"loss_type": "dft"}, "`loss_type: dft`", "nll"),
    "label smoothing": (
        {"label_smoothing_factor": 0.1},
        "`label_smoothing_factor=0.1`",
        "`objective='label_smoothing'`",
    ),
    "learning_rate word": ({"learning_rate": "fast"}, "`learning_rate: fast` is not a number"),
    "learning_rate < 0": ({"learning_rate": -1.0}, "`learning_rate=-1.0`", "0 or more"),
    "max_steps": ({"max_steps": 1.5}, "`max_steps: 1.5` is not a whole number"),
    "no step": ({"max_steps": -1, "num_train_epochs": -1}, "`num_train_epochs=-1", "`max_steps=-1`", "above 0"),
    "bf16": ({"bf16": "maybe"}, "`bf16: maybe` is not true or false"),
    "max_length word": ({"max_length": "long"}, "`max_length: long`", "Maximum length"),
    "max_length short": ({"max_length": 4}, "`max_length=4`", "Raise `max_length`"),
    "batch size": ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size=0`", "1 or more"),
    "accumulation": ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps=0`", "1 or more"),
    "save_steps": ({"save_steps": 0}, "`save_steps=0", "above 0"),
    "save_total_limit": ({"save_total_limit": 0}, "`save_total_limit=0`", "1 or more"),
    "ddp_timeout": ({"ddp_timeout": 0}, "`ddp_timeout=0`", "1 or more"),
    "eval_strategy": ({"eval_strategy": "often"}, "`eval_strategy: often`", "no, steps, epoch"),
    "optim": ({"optim": "adamw_tosh"}, "`optim: adamw_tosh`", "adamw_torch"),
    "lr_scheduler_type": ({"lr_scheduler_type": "cosin"}, "`lr_scheduler_type: cosin`", "cosine"),
    "dtype": ({"dtype": "float33"}, "`dtype: float33`", "bfloat16"),
    "attention": ({"attn_implementation": "flash_9"}, '`attn_implementation="flash_9"`', "sdpa"),
    "eos_token": ({"eos_token": "<nope>"}, "`eos_token` ('<nope>')", "exists in the vocabulary"),
    "task": ({"task": "gsm9k"}, "`task: gsm9k`", "gsm8k, arithmetic"),
    "columns alone": ({"task": "summarization", "dataset_name": "x/y"}, "`source_column` not set", "set both"),
    "task's function": (
        lambda folder: {
            **file("rows.jsonl", ROW)(folder),
            "task": "nowhere:score",
            "eval_generations": 1,
            "do_eval": True,
            "dataset_test_split": "train",
        },
        "`task: nowhere:score` could not be imported",
        "module:name",
    ),
    "generations, no evaluation": ({"eval_generations": 4}, "`eval_generations: 4`", "there is none", "do_eval: true"),
    "generations < 0": ({"eval_generations": -1}, "`eval_generations: -1`", "0 or more"),
    "eval_top_p": ({"eval_top_p": 0}, "`eval_top_p: 0`", "above 0"),
    "eval_temperature": ({"eval_temperature": -1}, "`eval_temperature: -1`", "0 (greedy) or more"),
    "generations too long": (
        {"eval_generations": 4, "do_eval": True, "eval_max_new_tokens": 999, "max_length": 250},
        "`eval_max_new_tokens=999`",
        "context of 256 tokens",
    ),
    "generations of text": (
        lambda folder: {
            **file("rows.jsonl", {"text": "x"})(folder),
            "eval_generations": 1,
            "do_eval": True,
            "dataset_test_split": "train",
        },
        "the columns text",
        "`source_column`",
    ),
    "num_train_rows": ({"num_train_rows": 0}, "`num_train_rows: 0` leaves nothing"),
    "no data": ({"task": None, "num_train_rows": None}, "No data. Set `dataset_name`"),
    "data twice": ({"datasets": [{"path": "x"}]}, "`datasets` is set together with `task`", "in one place"),
    "no file": ({"task": None, "dataset_name": "./nowhere.jsonl"}, "`dataset_name: ./nowhere.jsonl`", "relative to"),
    "pickle of rows": (file("rows.pkl", "x"), "`dataset_name: ", "rows.pkl", "Convert it"),
    "half a JSON": (file("rows.jsonl", ROW, '{"prompt": '), "`dataset_name: ", "rows.jsonl", "in row 1", "Mend"),
    "no Parquet": (file("rows.parquet", "x"), "`dataset_name: ", "rows.parquet", "Mend"),
    "no rows": (file("rows.jsonl"), "`dataset_name: ", "not one row", "Mend"),
    "null": (file("rows.jsonl", ROW, {**ROW, "completion": None}), "Row 1 of the train", "'completion'", "Remove"),
    "number": (
        file("rows.jsonl", {**ROW, "completion": 2}),
        "Row 0 of the train",
        "has 2 as its 'completion'",
        "Conv",
    ),
    "mixed": (file("rows.jsonl", ROW, {**ROW, "completion": 2}), "'completion'", "neither text", "Convert"),
    "columns": (file("rows.jsonl", {"q": "a", "a": "b"}), "['q', 'a']", "'completion'", "Rename"),
    "train split": ({"dataset_train_split": "nope"}, "`dataset_train_split: nope`", "train, validation, test"),
    "Hub data": ({"task": None, "dataset_name": "no-one/nothing"}, "`dataset_name: no-one/nothing`", "hf auth login"),
    "no model": ({"model_name_or_path": None}, "No model. Set `model_name_or_path`"),
    "model's path": ({"model_name_or_path": "./no/such"}, "`model_name_or_path: ./no/such`", "relative to"),
    "model is a file": (a_file("model_name_or_path"), "`model_name_or_path: ", "taken` is a file", "Name the folder"),
    "model without config": (model("tokenizer.json"), "`model_name_or_path: ", "config.json", "Hub id"),
    "model without weights": (model("config.json"), "`model_name_or_path: ", "no weights", "checkpoints"),
    "pickled weights": (model("config.json", "pytorch_model.bin"), "`model_name_or_path: ", "a pickle", "convert it"),
    "Hub model": ({"model_name_or_path": "no-one/nothing"}, "`model_name_or_path: no-one/nothing`", "hf auth login"),
    "output_dir a file": (a_file("output_dir"), "`output_dir: ", "cannot be written to", "Set it to a folder"),
    "output_dir below a file": (a_file("output_dir", "/run"), "`output_dir: ", "cannot be written to", "Set it to"),
    "output_dir": ({"output_dir": "/proc/nope"}, "`output_dir: /proc/nope` cannot be written to", "Set it to"),
    "checkpoint": ({"resume_from_checkpoint": "./nope"}, "`resume_from_checkpoint: ./nope`", "or to `true`"),
    "chat template": ({"chat_template_path": "./no.jinja"}, "`chat_template_path: ./no.jinja`", "relative to"),
    "adapter on the head": ({**LORA, "lora_target_modules": ["q_proj", "lm_head"]}, "'lm_head'", "Remove 'lm_head'"),
    "adapter on nothing": (
        {**LORA, "lora_target_modules": ["qq", "vv"]},
        "`lora_target_modules: ['qq', 'vv']`",
        "q_pr",
    ),
    "lora_r": ({**LORA, "lora_r": 0}, "`lora_r: 0`", "1 or more"),
    "4 bits, no adapter": ({"load_in_4bit": True}, "`load_in_4bit`", "set `use_peft: true`"),
    "token": ({"model_init_kwargs": {"token": "hf_secret"}}, "`model_init_kwargs` holds a `token`", "HF_TOKEN"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_message(name, model_folder, tmp_path, capfd, monkeypatch):
    bad, *fragments = BAD[name]
    overrides = bad(tmp_path) if callable(bad) else bad
    recipe = write_recipe(tmp_path, model_folder, **overrides)
    before = sorted(tmp_path.rglob("*"))
    try:
        status = irl.run(["--config", str(recipe)])
    except SystemExit as error:  # the parser's
        status = error.code
    stderr = capfd.readouterr().err
    assert status == 2
    assert stderr.count("trl-irl irl: error: ") == 1 and "usage:" not in stderr
    message = stderr.split("trl-irl irl: error: ")[1]
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment in message
    assert "hf_secret" not in stderr
    assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"


def test_there_are_enough():
    assert len(BAD) >= 40


@pytest.mark.parametrize(
    "recipe, fragment",
    [
        ("lambda_td: [1, 2", "not plain YAML"),
        ("- lambda_td", "holds list and no keys"),
        ("output_dir: !!python/object/apply:os.system ['touch run_by_the_recipe']", "not plain YAML"),
    ],
)
def test_recipes_are_data(recipe, fragment, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(SystemExit) as exit:
        irl.run(["--config", "recipe.yaml"])
    assert exit.value.code == 2 and fragment in capfd.readouterr().err
    assert not (tmp_path / "run_by_the_recipe").exists()


@pytest.mark.parametrize(
    "words, fragment",
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config"], "`--config` takes one recipe"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["train"], "unexpected words ['train']"),
        (["--learning_r", "1"], "unknown key `learning_r`; did you mean `learning_rate`?"),
        (["--learning_rate", "fast"], "learning_rate"),
    ],
)
def test_words_on_the_command_line(words, fragment, capfd):
    with pytest.raises(SystemExit) as exit:
        irl.run([*words, "--use_cpu", "true", "--bf16", "false"] if words[-1] != "--config" else words)
    stderr = capfd.readouterr().err
    assert exit.value.code == 2 and fragment in stderr and "usage:" not in stderr
