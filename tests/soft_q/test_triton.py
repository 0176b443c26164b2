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
grad_q, grad_v = torch.randn(2, TOKENS)
grad_v = grad_v[:1].expand(TOKENS)

def both(function):
    results = []
    for use in (False, True):
        tiles.uses_triton = lambda device: use
        results.append(function())
    return zip(*results, strict=True)

for softcap in (None, 3.0):
    def fold():
        stats = tiles.RunningStatistics(labels, torch.float32)
        for start in range(0, COLUMNS, 200):
            tiles.fold(x[:, start : start + 200].contiguous(), start, stats, 0.7, softcap, torch.empty(TOKENS * 200))
        return stats.result()

    folded = list(both(fold))
    for torch_result, triton_result in folded:
        torch.testing.assert_close(triton_result, torch_result)
    assert folded[3][1].tolist()[:2] == [True, False]
    v = folded[1][0]

    def gradient():
        out = [
            tiles.gradient(x[:, s : s + 200].contiguous(), s, labels, v, grad_q, grad_v, 0.7, softcap, dtype,
                torch.empty(TOKENS * 200))
            for s in range(0, COLUMNS, 200) for dtype in (torch.float32, torch.bfloat16)
        ]
        return out

    for torch_result, triton_result in both(gradient):
        assert triton_result.dtype == torch_result.dtype
        torch.testing.assert_close(triton_result, torch_result)
print("same")
"""


def test_kernels_equal_torch_operations_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "same", run.stderr[-3000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("has_softcap", [False, True])
def test_kernels_compile(capability, has_softcap, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trl_irl.soft_q import tiles

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    floats = ["scale", "softcap"]
    integers = ["stride", "out_stride", "start", "columns"]
    for kernel, out in (
        (tiles._fold_kernel, None),
        (tiles._gradient_kernel, "bf16"),
        (tiles._gradient_kernel, "fp32"),
    ):
        constants = {"HAS_SOFTCAP": has_softcap, "BLOCK": 1024}
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
