"""`torch_compile`: the layers are compiled, the head stays outside, and training is what it was."""

import pytest
import torch
from torch._dynamo.backends.registry import _COMPILER_FNS, lookup_backend
from torch._dynamo.testing import EagerAndRecordGraphs

from tests.conftest import make_model


@pytest.fixture
def graphs(monkeypatch):
    """What Dynamo has compiled, by the backend `eager`, which runs it as it is."""
    lookup_backend("eager")
    torch._dynamo.reset()
    backend = EagerAndRecordGraphs()
    monkeypatch.setitem(_COMPILER_FNS, "eager", backend)
    yield backend.graphs
    torch._dynamo.reset()


def trained(make_trainer, **keys):
    trainer = make_trainer(max_steps=3, learning_rate=1e-2, adam_epsilon=1e-3, lambda_td=0.3, **keys)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.state_dict()


@pytest.mark.any_trl
def test_layers_are_compiled_and_the_head_is_not(make_trainer, graphs):
    expected, weights = trained(make_trainer)
    actual, compiled = trained(make_trainer, torch_compile=True, torch_compile_backend="eager")
    assert actual == pytest.approx(expected, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(compiled[name.removeprefix("_orig_mod.")], weight, rtol=1e-4, atol=1e-6)
    called = [node for graph in graphs for node in graph.graph.nodes if node.op.startswith("call")]
    assert sum("scaled_dot_product" in str(node.target) for node in called) >= 2  # each of two layers
    vocabulary = make_model("qwen2").config.vocab_size
    shapes = [node.meta["example_value"].shape for node in called if hasattr(node.meta.get("example_value"), "shape")]
    assert not any(vocabulary in shape for shape in shapes)
