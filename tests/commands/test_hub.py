"""Pushing: what cannot be is said before anything is trained, and a push that fails at the end loses nothing."""

import json

import pytest

from tests.conftest import make_model, make_tokenizer
from trl_irl.commands import irl, prepare


ROWS = [{"prompt": f"{i} + 1?", "completion": f" {i + 1}"} for i in range(8)]


class Offline(ConnectionError):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


IRL = "--model_name_or_path model --dataset_name rows.jsonl --output_dir out --use_cpu true --bf16 false --max_steps 1"
IRL += " --report_to none --save_strategy no --push_to_hub true --hub_model_id me/mine"
PREPARE = "--tokenizer model --dataset_name rows.jsonl --output_dir out --push_to_hub true --hub_dataset_id me/mine"
COMMANDS = {"irl": (irl, IRL, "hub_model_id"), "prepare": (prepare, PREPARE, "hub_dataset_id")}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "error", [Offline("Cannot reach the Hub"), ValueError("Invalid token"), RuntimeError("\n\n403 Forbidden\nmore")]
)
def test_before_anything_is_done(command, error, folder, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    module, words, key = COMMANDS[command]
    assert module.run(words.split()) == 2
    told = capsys.readouterr().err
    reason = str(error).strip().splitlines()[0]
    assert f"`{key}: me/mine` cannot be pushed to: {reason}" in told and "hf upload me/mine" in told
    assert "could not be loaded" not in told and not (folder / "out").exists()


def test_after_training(folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.create_repo", lambda *args, **kwargs: None)
    monkeypatch.setattr("trl_irl.trainer.irl.trainer.IRLTrainer.init_hf_repo", lambda self, **kwargs: None)

    def fails(self, **kwargs):
        raise Offline("connection reset\nin the middle")

    monkeypatch.setattr("trl_irl.trainer.irl.trainer.IRLTrainer.push_to_hub", fails)
    assert irl.run(IRL.split()) == 1
    told = capsys.readouterr().err
    assert "Everything is saved in out, but it could not be pushed to me/mine: connection reset." in told
    assert "hf upload me/mine out" in told
    assert (folder / "out/model.safetensors").is_file() and (folder / "out/trainer_state.json").is_file()


def test_after_preparing(folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.create_repo", lambda *args, **kwargs: None)

    def fails(self, *args, **kwargs):
        raise Offline("connection reset")

    monkeypatch.setattr("datasets.DatasetDict.push_to_hub", fails)
    assert prepare.run(PREPARE.split()) == 2
    assert "Everything is saved in out" in capsys.readouterr().err
    assert (folder / "out/train.parquet").is_file()


def test_pushed(folder, monkeypatch, capsys):
    made, pushed = [], []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda name, **kwargs: made.append((name, kwargs["repo_type"])))
    monkeypatch.setattr("trl_irl.trainer.irl.trainer.IRLTrainer.init_hf_repo", lambda self, **kwargs: None)
    monkeypatch.setattr("trl_irl.trainer.irl.trainer.IRLTrainer.push_to_hub", lambda self, **kwargs: pushed.append(1))
    assert irl.run(IRL.split()) == 0
    assert made == [("me/mine", "model")] and pushed == [1]
