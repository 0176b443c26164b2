"""
The CUDA kernels where there is no GPU: their arithmetic in Triton's interpreter, against the torch operations, and
their compilation for two GPU architectures. tests/soft_q/test_cuda.py runs them on a GPU.
"""

import os
import subprocess
import sys

import pytest


pytest.importorskip("triton")

_INTERPRETED = """
import torch
from trl_irl.soft_q import tiles
from trl_irl.soft_q.statistics import RowGradients, RowValues, RunningStatistics, Statistics

assert tiles.is_triton_available()
torch.manual_seed(0)
TOKENS, COLUMNS = 9, 501
labels = torch.randint(COLUMNS, (TOKENS,))
x = torch.randn(TOKENS, COLUMNS)
labels[0], labels[1] = x[0].argmax(), 500
x[1, 3] = x[1, 500] = 9.0  # a tie that the lower id wins
x[2, :] = -torch.inf  # a row of which all the first tiles are forbidden, and all but one of the last
x[2, 450] = 1.0
x[3, 7] = x[3, 300] = -torch.inf
labels[2], labels[3] = 450, 8
labels = torch.stack([labels, labels + 1], 1)[:, 0]  # not one after the other in memory
upstream = torch.randn(6, TOKENS)
ASKED = [
    Statistics(),
    Statistics(entropy=True),
    Statistics(mean=True),
    Statistics(temperature=2.0),
    Statistics(temperature=0.7, gem="linear"),
    Statistics(True, True, 0.7, "log_sigmoid"),
]

def both(function):
    results = []
    for use in (False, True):
        tiles.uses_triton = lambda device, dtype: use
        results.append(function())
    return zip(*results, strict=True)

def check(softcap, asked):
    label_logits = x.gather(1, labels[:, None])[:, 0] * 0.7
    label_logits = label_logits if softcap is None else softcap * torch.tanh(label_logits / softcap)

    def fold():
        stats = RunningStatistics(labels, torch.float32, asked, label_logits)
        for start in range(0, COLUMNS, 200):
            tiles.fold(x[:, start : start + 200].contiguous(), start, stats, 0.7, softcap, torch.empty(TOKENS * 200))
        values, mass = stats.result(COLUMNS)
        return (*values, mass)

    folded = list(both(fold))
    for torch_result, triton_result in folded:
        if torch_result is not None:  # the mean of a row with -inf is -inf, or the least finite number times its share
            torch.testing.assert_close(triton_result.clamp(min=-1e9), torch_result.clamp(min=-1e9))
    assert folded[3][1].tolist()[:2] == [True, False]
    *values, mass = (torch_result for torch_result, _ in folded)
    values = RowValues(*values)
    g_q, g_v, g_h, g_m, g_t, g_gem = upstream
    given = RowValues(
        g_q,
        g_v[:1].expand(TOKENS),
        g_h if asked.entropy else None,
        None,
        g_m if asked.mean else None,
        g_t[:1].expand(TOKENS) if asked.temperature else None,
        g_gem if asked.gem else None,
    )
    state = RowGradients(asked, labels, values, mass, label_logits, given, COLUMNS)

    def gradient():
        return [
            tiles.gradient(x[:, s : s + 200].contiguous(), s, state, 0.7, softcap, dtype, torch.empty(TOKENS * 200))
            for s in range(0, COLUMNS, 200) for dtype in (torch.float32, torch.bfloat16)
        ]

    for torch_result, triton_result in both(gradient):
        assert triton_result.dtype == torch_result.dtype
        torch.testing.assert_close(triton_result, torch_result)

for softcap in (None, 3.0):
    for asked in ASKED:
        check(softcap, asked)
print("same")
"""


def test_kernels_equal_torch_operations_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "same", run.stderr[-3000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("has_everything", [False, True])
def test_kernels_compile(capability, has_everything, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trl_irl.soft_q import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    floats = ["scale", "softcap", "coldness", "slope"]
    integers = ["stride", "out_stride", "start", "columns"]
    for kernel, out in (
        (kernels._fold_kernel, None),
        (kernels._gradient_kernel, "bf16"),
        (kernels._gradient_kernel, "fp32"),
    ):
        constants = {name: has_everything for name in kernel.arg_names if name.startswith("HAS_")} | {"BLOCK": 1024}
        signature = {}
        for name in kernel.arg_names:
            if name in constants:
                signature[name] = "constexpr"
            elif name in floats:
                signature[name] = "fp32"
            elif name in integers:
                signature[name] = "i32"
            else:
                signature[name] = {"labels_ptr": "*i64", "out_ptr": f"*{out}"}.get(name, "*fp32")
        source = ASTSource(kernel, signature, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
