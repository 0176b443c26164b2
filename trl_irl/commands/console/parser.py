"""Recipes and command lines, parsed by TRL's parser, with unknown keys and unfit values refused by name."""

import argparse
import difflib
import itertools
import json
import math
import os
import sys
import typing
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from trl import TrlParser

from . import old_keys
from .failures import report
from .help_text import short_help
from .recipe_file import read_recipe


_WORDS = {"on": "true", "off": "false"}  # as YAML 1.1 had them; argparse knows yes and no
_MAY_BE_A_FILE = ("accelerator_config", "deepspeed", "fsdp_config")
_MAY_BE_INFINITE = ("max_grad_norm",)


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] for which a key that no dataclass knows is an error naming the nearest known key, wherever it
    stands: TRL's own scripts ignore `lerning_rate` in silence, and argparse takes `--learning_r` for
    `--learning_rate`. A recipe's values are held to the types of their keys, as words on the command line are.
    """

    def __init__(self, dataclass_types, doc: str = "", **kwargs):
        self.doc = doc  # what the command does, with examples: for `--help`
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def format_help(self) -> str:
        return short_help(self, tuple(self.dataclass_types), self.doc)

    def parse(self, args: Iterable[str] | None = None) -> tuple:
        """
        Parse `--config recipe.yaml` and the arguments that override it.

        Args:
            args (`Iterable[str]`, *optional*):
                Command line without the program's name; `sys.argv[1:]` if `None`.

        Returns:
            One instance of each dataclass. An error ends the process with status 2 and a message on stderr.
        """
        words = [part for word in (sys.argv[1:] if args is None else args) for part in _split_config(word)]
        if "--help-all" in words:
            print(super().format_help())
            raise SystemExit(0)
        try:
            recipe, words = self._take_recipe(words)
            words, unset = self._take_nulls(words)
            recipe = {key: value for key, value in recipe.items() if key not in unset}
            recipe |= {key: None for key in unset if self._may_be_nothing(key)}
            self._check_known(recipe, words)  # a misspelled key before all that its absence leads to
            for name, value in recipe.pop("env", {}).items():
                os.environ[name] = str(value)
            self.set_defaults_with_config(**recipe)
            self._follow_launcher(recipe)
            parsed = self.parse_args_into_dataclasses(args=words)
            self._check_parsed(parsed)
        except (ValueError, TypeError, OSError, ImportError) as error:
            message = str(error)
            if "use_cpu" in message and "bf16" in message:
                message += " That is `--accelerate_config cpu` (or `use_cpu: true`)."
            self.error(message)
        return tuple(parsed)

    def checked(self, recipe: str) -> dict:
        """
        What a recipe sets, by path or name, where it is only looked at.

        Raises:
            `ValueError`: an unknown key, or a value that its key does not take.
        """
        keys, _ = self._take_recipe(["--config", recipe])
        self._check_known(keys, [])
        keys.pop("env", None)
        self.set_defaults_with_config(**keys)
        kinds = {action.dest: action.type for action in self._actions}
        values = {key: self.get_default(key) for key in keys}
        return {key: kinds[key](x) if isinstance(x, str) and kinds[key] else x for key, x in values.items()}

    def _take_recipe(self, words: list[str]) -> tuple[dict, list[str]]:
        """The recipe's keys, as this parser calls them, and the words without it."""
        if words.count("--config") > 1 or words[-1:] == ["--config"]:
            raise ValueError("`--config` takes one recipe file after it.")
        if "--config" not in words:
            return {}, words
        place = words.index("--config")
        recipe, known, keys = read_recipe(words[place + 1]), self._known(), {}
        for key, value in recipe.items():
            name = key.replace("-", "_") if key.replace("-", "_") in known else key
            if name in keys:
                raise ValueError(f"`{name}` is set twice: as `{name}` and as `{key}`. Keep one of them.")
            keys[name] = value
        if not isinstance(keys.get("env", {}), dict):
            raise ValueError("`env` takes a mapping, of names of environment variables to their values.")
        return keys, words[:place] + words[place + 2 :]

    def _take_nulls(self, words: list[str]) -> tuple[list[str], set[str]]:
        """
        Without `--key null`, which unsets what a recipe sets: nothing, as `key: null` in it, or the default of a key
        that cannot be nothing. Of what the arguments call `any_text`, such as a prompt, it is a word as any other.
        """
        left, unset = [], set()
        for word in itertools.chain.from_iterable(map(_split_null, words)):
            key = left[-1][2:].replace("-", "_") if left and left[-1].startswith("--") else ""
            if word == "null" and key in self._known() and not self._takes_any_text(key):
                left.pop()
                left = _without(left, key)  # the last word counts, as of all values
                unset.add(key)
            else:
                left.append(word)
                unset.discard(key)
        return left, unset

    def _may_be_nothing(self, key: str) -> bool:
        return type(None) in typing.get_args(self._hint(key))

    def _takes_any_text(self, key: str) -> bool:
        return any(key in getattr(kind, "any_text", ()) for kind in self.dataclass_types)

    def _known(self) -> set[str]:
        return {action.dest for action in self._actions} - {"help"}

    def _check_known(self, recipe: dict, words: list[str]) -> None:
        options = {option for option in self._option_string_actions if option.startswith("--")}
        unknown = [key for key in recipe if key not in self._known() and key != "env"]
        unknown += [word[2:].split("=")[0] for word in words if self._is_unknown(word, options)]
        if unknown:
            raise ValueError("\n".join(self._explain(key) for key in unknown))
        _, stray = self.parse_known_args([word for word in words if word not in ("-h", "--help")])
        if stray:
            recipes = [word for word in stray if Path(word).suffix in (".yaml", ".yml")]
            hint = f" A recipe is `--config {recipes[0]}`." if recipes else ""
            raise ValueError(f"unexpected words {stray}: every argument is written `--key value`.{hint}")

    @staticmethod
    def _is_unknown(word: str, options: set[str]) -> bool:
        return word.startswith("--") and word.split("=")[0] not in options

    def _explain(self, key: str) -> str:
        known = self._known()
        if explanation := old_keys.explain(key.replace("-", "_"), known):
            return explanation
        nearest = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.5)
        return f"unknown key `{key}`" + (f"; did you mean `{nearest[0]}`?" if nearest else ".")

    def error(self, message: str) -> None:
        report(self.prog, message)  # without argparse's usage, which would list 300 keys
        raise SystemExit(2)

    def set_defaults_with_config(self, **config) -> list[str]:
        for action in self._actions:
            if action.dest not in config:
                continue
            value = config[action.dest]
            if value is None:
                self._check_null(action.dest)
            if _is_list(action):
                value = [value] if not isinstance(value, list | type(None)) else value
                for item in value or ():
                    self._check_type(action, item)
            else:
                self._check_type(action, value)
                if _is_truth(action):
                    value = _WORDS.get(str(value).lower(), value)
            config[action.dest] = value
        return super().set_defaults_with_config(**config)

    def _check_null(self, key: str) -> None:
        if self._hint(key) is not None and not self._may_be_nothing(key) and self.get_default(key) is not None:
            raise ValueError(
                f"`{key}: null` sets nothing, and it cannot be nothing. Leave the key out for its default, "
                f"{self.get_default(key)}, or give it a value."
            )

    def _hint(self, key: str):
        for kind in self.dataclass_types:
            if key in kind.__dataclass_fields__:
                return typing.get_type_hints(kind).get(key)
        return None

    def _check_type(self, action: argparse.Action, value) -> None:
        if value is None or isinstance(value, dict):
            return  # not set; keys that take a mapping check it themselves
        try:
            if isinstance(value, list) and action.type in (int, float, bool):
                raise ValueError
            said = _WORDS.get(str(value).lower(), str(value)) if _is_truth(action) else str(value)
            converted = action.type(said) if action.type else value
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            kinds = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
            kind = kinds.get(getattr(action.type, "__name__", ""), "of the kind it takes")
            raise ValueError(f"`{action.dest}: {value}` is not {kind}. It is: {action.help or 'see --help'}") from None
        if action.choices and converted not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise ValueError(f"`{action.dest}: {value}` is not among its choices, which are {choices}.")

    def _follow_launcher(self, recipe: dict) -> None:
        # accelerate says so to its processes, and transformers does not look.
        asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        if asked and "use_cpu" in self._known() and "use_cpu" not in recipe:
            self.set_defaults(use_cpu=True)

    def _check_parsed(self, parsed: Iterable) -> None:
        for one in parsed:
            for field in fields(one):
                value = getattr(one, field.name, None)
                for number in value if isinstance(value, list | tuple) else [value]:
                    infinite = isinstance(number, float) and math.isinf(number) and field.name not in _MAY_BE_INFINITE
                    if infinite or (isinstance(number, float) and math.isnan(number)):
                        raise ValueError(f"`{field.name}: {number}` is no number that it can be. Give a finite one.")
                if isinstance(value, str) and field.name not in _MAY_BE_A_FILE and self._takes_mapping(field.name):
                    raise ValueError(
                        f"`{field.name}: {value}` takes a mapping, such as `{field.name}: {{key: value}}` in a recipe "
                        f"or {json.dumps({'key': 'value'})} on the command line."
                    )

    def _takes_mapping(self, key: str) -> bool:
        kinds = typing.get_args(self._hint(key)) or (self._hint(key),)
        return any((typing.get_origin(kind) or kind) is dict for kind in kinds)


def _is_list(action: argparse.Action) -> bool:
    return action.nargs in ("+", "*")


def _is_truth(action: argparse.Action) -> bool:
    return getattr(action.type, "__name__", "") == "string_to_bool"


def _without(words: list[str], key: str) -> list[str]:
    left, inside = [], False
    for word in words:
        if word.startswith("--"):
            inside = word.split("=")[0][2:].replace("-", "_") == key
        if not inside:
            left.append(word)
    return left


def _split_null(word: str) -> list[str]:
    return word.rsplit("=", 1) if word.startswith("--") and word.endswith("=null") else [word]


def _split_config(word: str) -> list[str]:
    # TRL's parser knows `--config recipe.yaml` only, and would take `--config=recipe.yaml` for no recipe at all.
    return word.split("=", 1) if word.startswith("--config=") else [word]
