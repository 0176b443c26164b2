"""Recipes as files: found by path or, where they come with the package, by name, and read as plain YAML 1.2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable
from pathlib import Path

import yaml


class _Loader(yaml.SafeLoader):
    """
    YAML 1.2's rule of what is a number or a truth: `1e-6` is a number, `no` and `off` are words, `12:30` is a time of
    day and not 750, `2024-01-01` is text. A key that is there twice is an error.
    """

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: dict[object, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise ValueError(f"line {line}: a key must be a word")
            if key in seen:
                raise ValueError(f"`{key}` is set twice, in lines {seen[key]} and {line}. Keep one of them")
            seen[key] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0) if re.match(r"0[ox]", text) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: `recipes/gsm8k/irl_lora.yaml`."""
    # In a wheel they lie inside the package, in a checkout beside it.
    package = Path(__file__).parents[2]
    recipes = {}
    for folder in (package.parent, package):
        recipes |= {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob("recipes/**/*.yaml"))}
    return recipes


def find_recipe(name: str) -> Path:
    """
    The file of a recipe given by path, or by the name of one that comes with the package, with or without `recipes/`
    and `.yaml`.

    Raises:
        `FileNotFoundError`: neither.
        `ValueError`: it is a folder.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    bare = name.removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
    if f"recipes/{bare}.yaml" in shipped:
        return shipped[f"recipes/{bare}.yaml"]
    if path.is_dir():
        raise ValueError(f"`--config {name}` is a folder. Name a recipe, a YAML file.")
    names = [key.removeprefix("recipes/").removesuffix(".yaml") for key in shipped]
    nearest = difflib.get_close_matches(bare, names, n=1)
    meant = f"Did you mean {nearest[0]}?" if nearest else f"These are: {', '.join(names)}."
    raise FileNotFoundError(
        f"`--config {name}` is not there (looked for in {Path.cwd()}), and no recipe that comes with trl-irl has that "
        f"name. {meant}"
    )


def read_recipe(name: str) -> dict:
    """
    The keys and values of a recipe.

    Raises:
        `FileNotFoundError`, `ValueError`: it is not there, or is no YAML mapping in UTF-8 with each key once.
    """
    path = find_recipe(name)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"`--config {name}` is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}. Save it as "
            "UTF-8."
        ) from error
    try:
        keys = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"`--config {name}` is not plain YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # of a value that looks like a number, or of ours
        raise ValueError(f"`--config {name}`: {error}.") from error
    if not isinstance(keys, dict):
        what = "is empty" if keys is None else f"holds {type(keys).__name__} and no keys"
        raise ValueError(f"`--config {name}` {what}. A recipe is YAML lines `key: value`.")
    return {str(key): value for key, value in keys.items()}
