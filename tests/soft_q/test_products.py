"""How often the head multiplies with the weight, and that what it keeps changes no number."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trl_irl.soft_q import buffer
from trl_irl.soft_q import projection as projections
from trl_irl.soft_q.buffer import DEFAULT_LOGIT_BUFFER_MB, buffer_bytes
from trl_irl.soft_q.projection import Projection
from trl_irl.soft_q.reference_kl import Reference
from trl_irl.soft_q.values import soft_q_values


TOKENS, VOCABULARY, HIDDEN = 12, 50, 8
ALL_LOGITS_MB = 8 * TOKENS * 64 / 2**20  # of columns in multiples of 16, and their working copy


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return function(*args, **(kwargs or {}))


def inputs(dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype, requires_grad=True)
    return hidden, Projection(weight, scale=scale), torch.randint(0, VOCABULARY, (TOKENS,))


def loss_of(hidden, projection, labels, logit_buffer_mb):
    values = soft_q_values(hidden, projection, labels, logit_buffer_mb)
    return (values.v - values.q).sum() + 0.3 * (values.q - 0.5 * values.v).square().sum()


@pytest.mark.parametrize(
    ("logit_buffer_mb", "scale", "products"),
    [(ALL_LOGITS_MB, 1.0, 3), (128, 1.0, 3), (ALL_LOGITS_MB / 2, 1.0, 2 * 4), (128, 0.5, 4)],
)
def test_logits_that_fit_are_multiplied_out_once(logit_buffer_mb, scale, products):
    """Forward, hidden states and weight; and each tile once more where it was not kept, or not as it was."""
    with Products() as counted:
        loss_of(*inputs(scale=scale), logit_buffer_mb).backward()
    assert counted.count == products


@pytest.mark.parametrize(
    ("free_mb", "scale", "products"),
    [(2 * ALL_LOGITS_MB + 0.01, 1.0, 3), (2 * ALL_LOGITS_MB - 0.01, 1.0, 16), (100, 0.5, 16)],
)
def test_auto_keeps_what_half_of_the_free_memory_holds(monkeypatch, free_mb, scale, products):
    """With the gradient of the weight taken off; and nothing more for a model whose logits are never kept."""
    monkeypatch.setattr(buffer, "DEFAULT_LOGIT_BUFFER_MB", ALL_LOGITS_MB / 4)
    monkeypatch.setattr(buffer, "free_memory", lambda device: int(free_mb * 2**20) + 4 * VOCABULARY * HIDDEN)
    found = []
    for logit_buffer_mb in ("auto", 128):
        hidden, projection, labels = inputs(scale=scale)
        with Products() as counted:
            loss_of(hidden, projection, labels, logit_buffer_mb).backward()
        found.append((counted.count, hidden.grad, projection.weight.grad))
    assert found[0][0] == products
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_auto_takes_the_default_where_nothing_is_trained(monkeypatch):
    monkeypatch.setattr(buffer, "free_memory", lambda device: 2**60)
    hidden, projection, _ = inputs()
    default = DEFAULT_LOGIT_BUFFER_MB * 2**20
    many = torch.empty(4096, HIDDEN, requires_grad=True)
    wide = Projection(torch.empty(50_001, HIDDEN))
    assert buffer_bytes("auto", hidden, projection, keeps=True) == default  # which holds them already
    assert buffer_bytes("auto", many, wide, keeps=True) == 8 * 4096 * 50_016
    assert buffer_bytes("auto", torch.cat([many, many]), wide, keeps=True) == 8 * 8192 * 50_016
    assert buffer_bytes("auto", many.detach(), wide, keeps=True) == default
    with torch.no_grad():
        assert buffer_bytes("auto", many, wide, keeps=True) == default


def test_free_memory_of_a_cpu_is_shared_by_its_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = buffer.free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    shared = buffer.free_memory(torch.device("cpu"))
    assert 2**20 < shared < 0.5 * alone


@pytest.mark.parametrize(("logit_buffer_mb", "products"), [(128, 3 + 2), (ALL_LOGITS_MB / 2, 2 * (4 + 2))])
def test_the_kl_to_a_reference_multiplies_with_the_reference_alone(logit_buffer_mb, products):
    """With its weight, once in the forward and once in the backward, and no more with the policy's."""
    hidden, projection, labels = inputs()
    reference = Reference(hidden.detach().flip(0), Projection(projection.weight.detach().flip(0)))
    with Products() as counted:
        values = soft_q_values(hidden, projection, labels, logit_buffer_mb, reference=reference)
        (values.v - values.q + 0.1 * values.kl).sum().backward()
    assert counted.count == products


@pytest.mark.parametrize(("logit_buffer_mb", "kept"), [(2 * ALL_LOGITS_MB, True), (ALL_LOGITS_MB / 2, False)])
def test_more_tokens_than_a_tile_has_are_kept_where_the_buffer_holds_them(logit_buffer_mb, kept, monkeypatch):
    monkeypatch.setattr(projections, "TOKENS_PER_TILE", 3)
    hidden, projection, labels = inputs()
    assert len(labels) > 3
    with Products() as counted:
        loss_of(hidden, projection, labels, logit_buffer_mb).backward()
    assert (counted.count == 3) is kept


def test_kept_and_computed_again_are_the_same():
    found = []
    for logit_buffer_mb in (128, ALL_LOGITS_MB / 4):
        hidden, projection, labels = inputs(torch.float64)
        loss_of(hidden, projection, labels, logit_buffer_mb).backward()
        found.append((hidden.grad, projection.weight.grad))
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-12, atol=1e-12)


def test_a_second_backward_has_the_gradients_of_the_first():
    """The first overwrites the logits that were kept."""
    hidden, projection, labels = inputs()
    loss = loss_of(hidden, projection, labels, 128)
    first, second = (torch.autograd.grad(loss, (hidden, projection.weight), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("logit_buffer_mb", [128, ALL_LOGITS_MB / 4])
def test_a_weight_of_16_bits_gets_sums_that_were_rounded_once(monkeypatch, logit_buffer_mb):
    monkeypatch.setattr(projections, "TOKENS_PER_TILE", 3)  # several tiles for each column
    hidden, projection, labels = inputs(torch.bfloat16)
    loss_of(hidden, projection, labels, logit_buffer_mb).backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, projection.weight)]
    loss_of(exact[0], Projection(exact[1]), labels, 128).backward()
    torch.testing.assert_close(projection.weight.grad, exact[1].grad.bfloat16(), rtol=2**-8, atol=1e-6)
    # Rounded after each tile, some would be off by more than one step of bfloat16.
    steps = (projection.weight.grad.double() / exact[1].grad - 1).abs()
    assert (steps <= 2**-8).all()


def test_nothing_is_kept_where_nothing_is_trained():
    hidden, projection, labels = inputs()
    with torch.no_grad():
        assert loss_of(hidden, projection, labels, 128).grad_fn is None


def test_tiles_cover_all_logits_once():
    covered = torch.zeros(10, VOCABULARY)
    for rows, columns in Projection(torch.zeros(VOCABULARY, HIDDEN)).tiles(10, 8 * 3 * 16):
        covered[rows, columns] += 1
    assert (covered == 1).all()


def test_free_memory_of_a_cpu_is_what_a_control_group_leaves(tmp_path):
    told = tmp_path / "cgroup"
    told.write_text("1:name=systemd:/\n0::/jobs/17\n")

    def group(path, limit, used, droppable):
        folder = tmp_path / "groups" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\n")

    group("jobs/17", "max", 900, 0)
    assert min(buffer._left_in_groups(tmp_path / "groups", told)) == float("inf")
    group("jobs", 1000, 700, 50)
    assert min(buffer._left_in_groups(tmp_path / "groups", told)) == 350
    group("jobs/17", 500, 400, 20)
    assert min(buffer._left_in_groups(tmp_path / "groups", told)) == 120
    assert min(buffer._left_in_groups(tmp_path / "groups", tmp_path / "nothing")) == float("inf")
