"""What counts of an evaluation's last batch, which accelerate fills up over several processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

from trl_irl.trainer.irl.soft_q_training import SoftQTraining


def counted(rank: int, positions: list[int], processes: int = 2, remainder: int = 3, **args) -> list[bool] | None:
    """Of the last batch of a padding-free evaluation, two rows per rank; `remainder` rows of it are no repetition."""
    PartialState()  # which accelerate's logger asks for
    loader = SimpleNamespace(total_batch_size=2 * processes)
    state = SimpleNamespace(end_of_dataloader=True, remainder=remainder, active_dataloader=loader)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=processes, process_index=rank, gradient_state=state),
        args=SimpleNamespace(**{"packing": False, "eval_packing": None, **args}),
        padding_free=True,
        _tensor_parallel=1,
        _warned_of_repeated=False,
    )
    inputs = {"position_ids": torch.tensor([positions])}
    found = SoftQTraining._not_repeated(trainer, torch.zeros(1, len(positions) - 1), inputs)
    return found if found is None else found[0].tolist()


def test_a_padding_free_row_begins_where_its_positions_do():
    # Two rows per rank, three in all: the second rank's second is a repetition. A state for each token but the last.
    assert counted(0, [0, 1, 2, 0, 1]) == [True] * 4
    assert counted(1, [0, 1, 2, 0, 1]) == [True, True, True, False]
    assert counted(1, [0, 0, 1, 2, 3]) == [True, False, False, False]
    # Padding to a multiple has positions of 0, which begin no row.
    assert counted(1, [0, 1, 2, 0, 1, 0, 0, 0], remainder=3) == [True, True, True, *[False] * 4]
    assert counted(0, [0, 1, 2, 0, 1, 0, 0, 0], remainder=3)[:4] == [True] * 4
    assert counted(1, [0, 1, 2, 0, 1], remainder=4, processes=1) is None


@pytest.mark.parametrize("rows, remainder, second", [(4, 6, [True, True, False, False]), (1, 2, [True])])
def test_rows_of_a_batch_that_one_rank_dispatches(rows, remainder, second):
    """Its last batch is cut among the ranks, and not filled up to whole ones: each has as many rows as it has."""
    loader = SimpleNamespace(total_batch_size=8)
    state = SimpleNamespace(end_of_dataloader=True, remainder=remainder, active_dataloader=loader)
    accelerator = SimpleNamespace(num_processes=2, process_index=1, gradient_state=state)
    trainer = SimpleNamespace(accelerator=accelerator, padding_free=False, _tensor_parallel=1)
    assert SoftQTraining._not_repeated(trainer, torch.zeros(rows, 5), {}).tolist() == second


@pytest.mark.parametrize("keys", [{"packing": True}, {"eval_packing": True}])
def test_packed_rows_that_count_twice_are_told(keys, caplog):
    assert counted(1, [0, 1, 2, 0, 1], **keys) is None
    assert "Set `eval_packing: false`" in caplog.text
    caplog.clear()
    assert counted(0, [0, 1, 2, 0, 1], processes=1, **keys) is None and not caplog.text
    assert counted(1, [0, 1, 2, 0, 1], packing=True, eval_packing=False) == [True, True, True, False]
