"""
Every command and snippet of the README, the docs and the recipes' READMEs: commands are parsed by what would run them,
Python is compiled and its names from this package are there.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from trl import TrlParser

from trl_irl.cli import COMMANDS, module_of
from trl_irl.commands.console.recipe_file import find_recipe


ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "recipes").glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (str(path.relative_to(ROOT)), language, block)
    for path in PAGES
    for language, block in re.findall(r"^[ ]*```(\w+)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL | re.M)
]
ON_A_CPU = ["--use_cpu", "true", "--bf16", "false"]


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments and placeholders for the reader's own values."""
    lines = block.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for one in found for words in split_at_and(one) if words]


def split_at_and(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


SHELL = [(name, words) for name, language, block in BLOCKS if language == "bash" for words in commands(block)]


@pytest.fixture
def files_of_pages(tmp_path, monkeypatch):
    """The modules that pages show under a title can be imported, as in the folder that a reader has put them in."""
    for path in (ROOT / "docs").glob("*.md"):
        titled = re.findall(r'```python title="(\w+)\.py"\n(.*?)```', path.read_text(encoding="utf-8"), re.DOTALL)
        for module, code in titled:
            (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
            monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("files_of_pages")
@pytest.mark.parametrize("name, words", SHELL, ids=[f"{name}: {' '.join(words)[:60]}" for name, words in SHELL])
def test_a_command_is_parsed_by_what_would_run_it(name, words):
    while "=" in words[0]:  # VARIABLE=value command
        words = words[1:]
    program, *rest = words
    program = program.removeprefix(".venv/bin/").removeprefix(".venv-latest/bin/")
    if program == "trl-irl":
        parse_ours(rest)
    elif program == "make":
        targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "trl":
        parse_trls(rest)
    elif program == "accelerate":
        assert rest[0] == "launch"
        at = rest.index("-m")
        module = rest[at + 1]
        assert module.startswith("trl_irl.commands.") or module.startswith("trl.")
        parse_ours([module.rpartition(".")[2], *rest[at + 2 :]])
    elif program in ("python", "python3"):
        parse_python(rest)
    else:
        assert program in (".", "pip", "git", "cd", "lm_eval", "pytest", "ruff", "pre-commit", ".ci/run"), program


def parse_ours(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "recipes", "COMMAND"):
        return
    command, *rest = words
    assert command.replace("_", "-") in COMMANDS, command
    if "--accelerate_config" in rest:
        at = rest.index("--accelerate_config")
        value = rest[at + 1]
        file = value if value.endswith(".yaml") else f"accelerate_configs/{value}.yaml"
        assert (ROOT / file).is_file(), value
        del rest[at : at + 2]
    if command == "chat" and not rest[0].startswith("-"):  # its models come first, as they are
        rest = ["--models", *rest]
    if "--config" in rest:
        at = rest.index("--config") + 1
        rest[at] = str(find_recipe(rest[at]))
    parser = importlib.import_module(module_of(command.replace("_", "-"))).make_parser()
    if "--help" in rest or "--help-all" in rest:
        return
    if "--use_cpu" in parser._option_string_actions:
        rest += ON_A_CPU
    parser.parse(rest)


def parse_trls(words: list[str]) -> None:
    """TRL's own commands: the recipe is one of ours and its keys are known to the command's config."""
    module = importlib.import_module(f"trl.scripts.{words[0]}")
    parser = module.make_parser()
    assert isinstance(parser, TrlParser)
    at = words.index("--config") + 1
    rest = [*words[1:at], str(find_recipe(words[at])), *words[at + 1 :], *ON_A_CPU]
    parser.parse_args_and_config(rest)


def parse_python(words: list[str]) -> None:
    """A script or module of this repository takes these options; it is left before it does anything."""
    if words[0] == "-m":
        module, *rest = words[1:]
        if not module.startswith(("benchmarks.", "tests.", "trl_irl.")):
            assert importlib.util.find_spec(module)
            return
        path = ROOT / (module.replace(".", "/") + ".py")
    else:
        path, rest = ROOT / words[0], words[1:]
    assert path.is_file(), path
    options = set(re.findall(r"add_argument\(\s*\"(--?[\w-]+)\"", path.read_text(encoding="utf-8")))
    options |= set(re.findall(r"add_argument\(\s*\"(--?[\w-]+)\"", (ROOT / "benchmarks/seeds.py").read_text("utf-8")))
    asked = {word.split("=")[0] for word in rest if word.startswith("--")}
    fields = {"--" + name for name in re.findall(r"^ {4}(\w+): ", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert asked <= options | fields, asked - options - fields


PYTHON = [(name, block) for name, language, block in BLOCKS if language == "python"]


@pytest.mark.parametrize("name, block", PYTHON, ids=[f"{name}: {block[:40]!r}" for name, block in PYTHON])
def test_a_snippet_compiles_and_its_imports_are_there(name, block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("trl_irl", "trl", "datasets"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for node in ast.walk(tree):  # keys of our configs, by keyword
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Config"):
            owner = importlib.import_module("trl_irl" if "IRL" in node.func.id or "GAIL" in node.func.id else "trl")
            known = getattr(owner, node.func.id).__dataclass_fields__
            assert {keyword.arg for keyword in node.keywords} - {None} <= set(known)


def test_there_are_as_many_as_a_reader_sees():
    assert len(SHELL) >= 40 and len(PYTHON) >= 4


def test_the_questions_quote_what_is_said():
    """Each quoted message of the FAQ, between its dots, is in the package's text."""
    strings = []
    for path in sorted((ROOT / "trl_irl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    said = "\n".join(strings)
    text = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    quotes = re.findall(r'\*\*"(.+?)"\*?\*?', text)
    assert len(quotes) >= 10
    for quote in quotes:
        fragments = [one.strip() for one in re.split(r"\.\.\.|`lerning_rate`|`learning_rate`", quote)]
        for fragment in fragments:
            assert fragment.strip(" ?;,`") in said, fragment
