"""The example notebooks: each runs, small, from its first cell to its last, and is committed with clean outputs."""

import json
import re
import sys
from pathlib import Path

import pytest


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all, as for a reader, who trains the base model once."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.any_trl
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, folder, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        """The kernel of this environment, whatever kernels the machine knows."""

        @property
        def kernel_spec(self):
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    for name, value in {"EXAMPLE_STEPS": "2", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=240, resources=resources, kernel_manager_class=ThisPython).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_committed_with_its_outputs(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 400_000
    book = json.loads(text)
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # A warning, a bar or a traceback is noise; a path of a machine is nobody else's.
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    told = json.dumps([{k: v for k, v in output.items() if k != "data"} for output in outputs])
    told += json.dumps([output["data"].get("text/plain", "") for output in outputs if "data" in output])
    assert not re.search(r"/(?:work|home|root|tmp|usr)/|0%\|", told)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_in_the_public_form(path):
    first, setup = json.loads(path.read_text(encoding="utf-8"))["cells"][:2]
    told = "".join(first["source"])
    assert told.startswith("# ") and f"/examples/{path.name}" in told and "minutes" in told
    assert "pip install" in "".join(setup["source"])


def test_there_are_four():
    assert len(EXAMPLES) == 4
