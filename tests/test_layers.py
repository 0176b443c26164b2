"""DESIGN 4: each floor of the package imports only from floors below it, and files stay short."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "trl_irl"
MAY_IMPORT = {
    "cli": {"commands"},
    "commands": {"trainer", "rewards", "soft_q", "tasks", "evaluation", "commands", "text"},
    "trainer": {"rewards", "soft_q", "trainer", "text"},
    "rewards": {"soft_q", "rewards", "text"},
    "soft_q": {"soft_q"},
    "tasks": {"tasks", "text"},
    "evaluation": {"evaluation", "text"},
    "text": {"text"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def own_imports(path):
    """The rooms of the package that a file imports from, at any depth of its code."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = parts[: -node.level] if node.level else ()
            full = [*base, *(node.module.split(".") if node.module else [])]
            if full[:1] == ["trl_irl"]:
                names = full[1:2] or [alias.name for alias in node.names]
                yield from (name for name in names if not name.startswith("__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room != "__init__":
        assert set(own_imports(path)) <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 420


def test_trl_experimental_is_imported_nowhere_but_for_ppo():
    for path in FILES:
        assert path.name == "ppo.py" or "trl.experimental" not in path.read_text(), path
