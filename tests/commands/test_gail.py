"""`trl-irl gail` and `trl-irl online-irl` from the command line: what they say when there is nothing to learn from."""

import json

import pytest
import torch

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl.commands import gail, online_irl


@pytest.fixture
def words(tmp_path):
    """A run on a model that says anything, each token as likely as another, and is cut after one."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    row = {"prompt": "One", "completion": " two three"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    keys = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "rows.jsonl",
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 4,
        "max_completion_length": 1,
        "learning_rate": 0.0,
        "max_steps": 5,
        **QUIET,
    }
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("command", [gail, online_irl], ids=["gail", "online-irl"])
def test_generation_that_never_ends_is_one_message(command, words, monkeypatch, capsys):
    monkeypatch.setattr("trl_irl.trainer.runtime.generation_watch.MAX_WITHOUT_END", 2)
    more = ["--num_generations", "2", "--dtype", "float32"] if command is gail else []
    torch.manual_seed(0)
    assert command.run([*words, *more]) == 1
    told = capsys.readouterr().err
    assert "error: For 2 generations no completion ended within `max_completion_length=1` tokens" in told
    assert "Traceback" not in told
