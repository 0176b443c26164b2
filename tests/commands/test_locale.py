"""A locale without UTF-8: files hold what they should, and no character on the terminal ends a run."""

import ast
import html
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trl_irl
from trl_irl.commands.console.failures import write_any_text


PACKAGE = Path(trl_irl.__file__).parent
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_text_file_names_its_encoding(path):
    """More than ruff's PLW1514 sees: it must know that a variable holds a `Path`."""
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name in ("read_text", "write_text") or (name == "open" and not any("b" in mode for mode in modes)):
            assert any(keyword.arg == "encoding" for keyword in call.keywords), f"{path}:{call.lineno}"


def test_a_terminal_without_the_character(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(UnicodeEncodeError):
        print("Σ", flush=True)
    write_any_text()
    print("größer Σ 今", flush=True)
    assert terminal.buffer.getvalue().decode("cp1252") == "größer ? ?\n"


@pytest.mark.any_trl
def test_scores_recipe_and_page_in_ascii(model_folder, tmp_path):
    rows = [{"prompt": "Größe π?", "completion": " 今 ü 🦊"}, {"prompt": "One", "completion": " two"}]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    keys = {
        "model": str(model_folder),
        "dataset_name": "rows.jsonl",
        "output": "rewards.jsonl",
        "html": "pages/new/p.html",
    }
    recipe = "".join(f"{key}: {value}\n" for key, value in keys.items())
    (tmp_path / "recipe.yaml").write_text(f"# ümläut\n{recipe}", encoding="utf-8")
    command = [sys.executable, "-m", "trl_irl.commands.score", "--config", "recipe.yaml"]
    environment = {**os.environ, **ASCII, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert b"Page: pages/new/p.html" in result.stdout
    names = {os.fsencode(path.relative_to(tmp_path)).decode("utf-8") for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"rows.jsonl", "recipe.yaml", "rewards.jsonl", "pages/new/p.html"}
    page = html.unescape((tmp_path / "pages/new/p.html").read_text(encoding="utf-8"))
    assert "Größe π?" in page and "🦊" in page and "今" in page
    scored = [json.loads(line) for line in (tmp_path / "rewards.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["completion"] for row in scored] == [row["completion"] for row in rows]
