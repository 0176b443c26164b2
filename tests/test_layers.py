"""DESIGN 4: each room of the package imports only from rooms below it, without a circle, and files stay short."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "trl_irl"
MAY_IMPORT = {
    "cli": {"commands"},
    "demos": {"commands", "planning", "trainer", "evaluation", "rewards", "tasks", "soft_q", "text"},
    "commands": {"planning", "trainer", "evaluation", "rewards", "tasks", "soft_q", "text"},
    "planning": set(),
    "trainer": {"rewards", "soft_q", "text"},
    "evaluation": {"rewards", "tasks", "text"},
    "rewards": {"soft_q", "text"},
    "tasks": {"text"},
    "soft_q": set(),
    "text": set(),
}
# Rooms inside a room: from the top.
INSIDE = {
    "trainer": ("gail", "ppo", "seq2seq", "online_irl", "irl", "runtime"),
    "soft_q": ("objectives",),
    "commands": ("console",),
}
GROUND = {"_fields", "_lazy", "_modes", "_moved", "_named"}  # which every package may import
FILES = sorted(PACKAGE.rglob("*.py"))


def own_imports(path):
    """The modules of the package that a file imports from, as their parts, at any depth of its code."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = parts[: -node.level] if node.level else ()
            full = [*base, *(node.module.split(".") if node.module else [])]
            if full[:1] == ["trl_irl"]:
                yield from ([*full[1:], alias.name] for alias in node.names if not alias.name.startswith("__"))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    room = room_of(path)
    if room in ("__init__", *GROUND):
        return
    rooms = {module[0] for module in own_imports(path)} - GROUND
    assert rooms <= MAY_IMPORT[room] | {room}


def test_every_room_is_listed():
    """A new folder or file at the top is one of the table's rooms."""
    there = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} - GROUND
    assert there | files == set(MAY_IMPORT)


def test_there_is_no_circle_between_rooms():
    """The table itself has none: what a room may import stands below it."""
    order = list(MAY_IMPORT)
    for room, below in MAY_IMPORT.items():
        assert all(order.index(other) > order.index(room) for other in below)


def test_there_is_no_circle_between_files():
    """Nor for types alone: whoever reads a file needs nothing of those that import it."""
    names = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in FILES if path.name != "__init__.py"}
    below = {
        path: {names[tuple(module[:n])] for module in own_imports(path) for n in (2, 3) if tuple(module[:n]) in names}
        for path in names.values()
    }
    done, under_way = set(), []

    def visit(path):
        assert path not in under_way, [str(one.relative_to(PACKAGE)) for one in (*under_way, path)]
        if path not in done:
            under_way.append(path)
            for other in below[path]:
                visit(other)
            done.add(under_way.pop())

    for path in below:
        visit(path)
    assert len(done) > 80


@pytest.mark.parametrize("room", INSIDE)
def test_rooms_inside_a_room_point_downward(room):
    inside = INSIDE[room]
    for path in FILES:
        parts = path.relative_to(PACKAGE / room).parts if path.is_relative_to(PACKAGE / room) else ()
        if len(parts) < 2:
            continue
        allowed = inside[inside.index(parts[0]) :]
        for module in own_imports(path):
            if module[0] == room and len(module) > 2 and module[1] in inside:
                assert module[1] in allowed, (path, module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420


def test_trl_experimental_is_imported_in_one_place():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert path.name == "trl_ppo.py" or not any("trl.experimental" in module for module in modules), path
