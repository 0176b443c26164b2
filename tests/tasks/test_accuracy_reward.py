"""The checker as TRL's trainers call it."""

import pytest

from trl_irl.tasks.final_answer import accuracy_reward


def test_right_and_wrong():
    completions = [" 3 + 4 = 7\n#### 7", " 3 + 4 = 8\n#### 8", " 7", " #### 7\n#### 1,000"]
    reference = [" Seven.\n#### 7", " Seven.\n#### 7", " #### 7", " #### 1000.0"]
    called = {"prompts": ["?"] * 4, "completion_ids": [[1]] * 4, "trainer_state": None}
    assert accuracy_reward(completions=completions, reference=reference, **called) == [1, 0, 0, 1]


def test_messages():
    completions = [[{"role": "assistant", "content": f"#### {n}"}] for n in (1, 2)]
    assert accuracy_reward(completions, ["#### 1", "#### 1"]) == [1, 0]


def test_no_column():
    with pytest.raises(ValueError, match="--reference_column reference"):
        accuracy_reward(["#### 1"])


@pytest.mark.parametrize(
    "reference",
    [
        ["#### 7", "#### 8"],  # several references for one row
        ["7"],
        {"answer": "7"},
        ("7",),
        [{"answer": "7"}],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": float("nan")}],
        [{"role": "assistant", "content": [{"type": "image"}]}],
        [],
        None,
        float("nan"),
    ],
    ids=repr,
)
def test_a_reference_that_is_no_text_is_no_reward_of_zero(reference):
    with pytest.raises(ValueError, match=r"row 0 of this batch.*(neither text nor a number|the reference is)"):
        accuracy_reward(completions=["#### 7"], reference=[reference])


@pytest.mark.parametrize(
    "reference",
    [
        [{"role": "assistant", "content": "#### 7"}],
        [{"from": "gpt", "value": "#### 7"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "#### 7"}]}],
        7,
        7.0,
    ],
    ids=repr,
)
def test_a_reference_as_messages_or_as_a_number_is_read(reference):
    assert accuracy_reward(completions=["#### 7", "#### 8"], reference=[reference] * 2) == [1, 0]
