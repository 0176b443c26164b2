"""The page of large models is what `plan` computes now."""

import json

import pytest

from benchmarks.scale import SIZES, cells
from benchmarks.seeds import RESULTS


@pytest.mark.any_trl
@pytest.mark.parametrize("size, method", [("1.5B", "full"), ("1.5B", "qlora"), ("7B", "lora")])
def test_raw_numbers_are_up_to_date(size, method):
    raw = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    assert {cell["model"] for cell in raw} == set(SIZES)
    kept = [cell for cell in raw if (cell["model"], cell["method"]) == (size, method)]
    assert kept == cells(size, method), "run `python -m benchmarks.scale`"
