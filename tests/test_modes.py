"""What runs a model in a mode of its own leaves every part of it in the mode that it was in."""

import pytest

from tests.conftest import make_model
from trl_irl.rewards.token_values import token_values
from trl_irl.soft_q import attach_soft_q_head
from trl_irl.text.generation import generate


def fails(model):
    generate(model, [[5, 6]], {1}, 0, 3, 1.0, 1, no_such_argument=1)


RUNS = {
    "generate": lambda model: generate(model, [[5, 6], [7]], {1}, 0, 3, 1.0, 2),
    "token_values": lambda model: token_values(model, [([5, 6, 7], [-100, 6, 7])], {1}),
    "attach_soft_q_head": attach_soft_q_head,
    "a failing generate": fails,
}


@pytest.mark.parametrize("name", RUNS)
def test_modes_stay(name):
    model = make_model()
    model.train()
    model.model.layers[0].eval()  # a part that its user keeps from dropout
    modes = {name: module.training for name, module in model.named_modules()}
    if name == "a failing generate":
        with pytest.raises(ValueError, match="no_such_argument"):
            fails(model)
    else:
        RUNS[name](model)
    assert {name: module.training for name, module in model.named_modules()} == modes
