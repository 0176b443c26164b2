"""Recipes and command lines, parsed by TRL's parser, with unknown keys and unfit values refused by name."""

import argparse
import difflib
import sys
from collections.abc import Iterable

from trl import TrlParser
from yaml import YAMLError

from .failures import report


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] for which a key that no dataclass knows is an error naming the nearest known key, wherever it
    stands: TRL's own scripts ignore `lerning_rate` in silence, and argparse takes `--learning_r` for
    `--learning_rate`. A recipe's values are held to the types of their keys, as words on the command line are.
    """

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def parse(self, args: Iterable[str] | None = None) -> tuple:
        """
        Parse `--config recipe.yaml` and the arguments that override it.

        Args:
            args (`Iterable[str]`, *optional*):
                Command line without the program's name; `sys.argv[1:]` if `None`.

        Returns:
            One instance of each dataclass. An error ends the process with status 2 and a message on stderr.
        """
        args = [part for word in (sys.argv[1:] if args is None else args) for part in _split_config(word)]
        try:
            if args.count("--config") > 1 or args[-1:] == ["--config"]:
                raise ValueError("`--config` takes one recipe file after it.")
            *parsed, from_recipe, from_command_line = self.parse_args_and_config(
                args, return_remaining_strings=True, separate_remaining_strings=True
            )
            unknown = [word for word in [*from_recipe[::2], *from_command_line] if word.startswith("--")]
            if unknown or from_command_line:
                raise ValueError(self._explain(unknown, from_command_line))
        except YAMLError as error:
            self.error(f"the recipe is not plain YAML: {' '.join(str(error).split())}")
        except (ValueError, TypeError, OSError, ImportError) as error:
            self.error(str(error))
        return tuple(parsed)

    def error(self, message: str) -> None:
        report(self.prog, message)  # without argparse's usage, which would list 300 keys
        raise SystemExit(2)

    def set_defaults_with_config(self, **config) -> list[str]:
        for action in self._actions:
            if action.dest not in config:
                continue
            value = config[action.dest]
            for item in value if isinstance(value, list) and action.nargs else [value]:
                self._check_type(action, item)
        return super().set_defaults_with_config(**config)

    def _check_type(self, action: argparse.Action, value) -> None:
        if value is None or isinstance(value, dict):
            return  # not set; keys that take a mapping check it themselves
        try:
            if isinstance(value, list) and action.type in (int, float, bool):
                raise ValueError
            converted = action.type(str(value)) if action.type else value
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            kinds = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
            kind = kinds.get(getattr(action.type, "__name__", ""), "of the kind it takes")
            raise ValueError(f"`{action.dest}: {value}` is not {kind}. It is: {action.help or 'see --help'}") from None
        if action.choices and converted not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise ValueError(f"`{action.dest}: {value}` is not among its choices, which are {choices}.")

    def _explain(self, unknown: list[str], from_command_line: list[str]) -> str:
        if not unknown:
            return f"unexpected words {from_command_line}: every argument is written `--key value`."
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        lines = []
        for word in unknown:
            key = word[2:].split("=")[0]
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            lines.append(f"unknown key `{key}`" + (f"; did you mean `{nearest[0]}`?" if nearest else "."))
        return "\n".join(lines)


def _split_config(word: str) -> list[str]:
    # TRL's parser knows `--config recipe.yaml` only, and would take `--config=recipe.yaml` for no recipe at all.
    return word.split("=", 1) if word.startswith("--config=") else [word]
