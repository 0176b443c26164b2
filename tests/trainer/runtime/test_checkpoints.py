"""Which checkpoints are whole, and what happens when one cannot be written."""

import contextlib
import errno
import threading
import time
from pathlib import Path

import pytest
import torch

from trl_irl.trainer.runtime.checkpoints import CheckpointError, newest_checkpoint, one_error_if_disk_fails


def test_newest_checkpoint_skips_what_was_not_written_to_its_end(tmp_path):
    assert newest_checkpoint(str(tmp_path / "nowhere")) is None
    assert newest_checkpoint(str(tmp_path)) is None
    for step, state in {2: "{}", 10: "{}", 12: '{"cut": ', 14: None}.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    with pytest.warns(UserWarning, match="not written to its end") as warned:
        assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")  # and not -2, as text would sort
    assert len(warned) == 2


def test_a_checkpoint_is_whole_only_when_every_rank_has_written_its_files(make_trainer, tmp_path, monkeypatch):
    """Rank 0 writes trainer_state.json, which marks the checkpoint, after a barrier that follows the others' files."""
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    order = []
    monkeypatch.setattr(
        trainer.accelerator,
        "wait_for_everyone",
        lambda: order.append(sorted(path.name for path in (tmp_path / "run/checkpoint-1").iterdir())),
    )
    trainer.train()
    assert any("rng_state.pth" in files and "trainer_state.json" not in files for files in order)
    assert newest_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-1")


def test_a_full_disk_is_one_error_and_earlier_checkpoints_stay(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=1)
    save = trainer._save_optimizer_and_scheduler

    def full(folder):
        if folder.endswith("checkpoint-3"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(CheckpointError) as error:
        trainer.train()
    message = str(error.value)
    assert "checkpoint-3 failed: [Errno 28] No space left on device." in message and "MiB are free" in message
    assert f"The newest checkpoint is {tmp_path / 'run/checkpoint-2'}" in message and "`save_total_limit`" in message
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_another_rank_that_still_writes_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "checkpoint-2"

    def other_rank():
        for i in range(20):
            folder.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (folder / f"shard-{i}.pt").write_text("half")
            time.sleep(0.05)

    thread = threading.Thread(target=other_rank)
    thread.start()
    with pytest.raises(CheckpointError, match="There is no earlier checkpoint"), one_error_if_disk_fails(folder, "."):
        raise OSError(errno.ENOSPC, "No space left on device")
    thread.join()
    assert list(tmp_path.iterdir()) == []

    # And for the other rank, whose folder is gone, it is the same error.
    with pytest.raises(CheckpointError, match="Parent directory"), one_error_if_disk_fails(folder, "."):
        torch.save(torch.zeros(3), folder / "shard.pt")


def test_a_folder_that_another_rank_makes_while_it_is_removed(tmp_path, monkeypatch):
    """Not there when it is looked at, and a folder when it is unlinked: it goes the next time."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder, is_dir, looked = tmp_path / "checkpoint-2", Path.is_dir, []

    def made_after_the_look(path, **kwargs):
        found = is_dir(path, **kwargs)
        if path == folder and not looked:
            looked.append(found)
            folder.mkdir()
        return found

    monkeypatch.setattr(Path, "is_dir", made_after_the_look)
    with pytest.raises(CheckpointError), one_error_if_disk_fails(folder, "."):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert looked == [False] and not folder.exists()


@pytest.mark.parametrize("state, stays", [('{"global_step": 3}', True), ('{"global_st', False), (None, False)])
def test_a_whole_checkpoint_stays_when_what_follows_it_fails(tmp_path, state, stays):
    """Such as a push to the Hub, for which the disk has no room."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    match = "What follows .*checkpoint-3 failed.*is whole and stays" if stays else "half-written has been removed"
    with pytest.raises(CheckpointError, match=match), one_error_if_disk_fails(folder, "."):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert folder.exists() == stays
    assert (newest_checkpoint(tmp_path) == str(folder)) == stays


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="of something else"), one_error_if_disk_fails(tmp_path, "."):
        raise RuntimeError("of something else")
    # huggingface_hub's errors are OSErrors too, and what was written is not to be blamed.
    for of_the_network in (ConnectionError("no route"), OSError("429 Too Many Requests"), TimeoutError("slow")):
        with pytest.raises(type(of_the_network)) as raised, one_error_if_disk_fails(tmp_path, "."):
            raise of_the_network
        assert raised.value is of_the_network
    assert tmp_path.is_dir()
    with pytest.raises(CheckpointError), one_error_if_disk_fails(tmp_path, "*.safetensors"):
        (tmp_path / "model.safetensors").write_text("half")
        (tmp_path / "notes.txt").write_text("of the user")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
