"""Recipes and command lines, parsed by TRL's parser, with unknown keys refused by name."""

import difflib
import sys
from collections.abc import Iterable

from trl import TrlParser


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] for which a key that no dataclass knows is an error naming the nearest known key, wherever it
    stands: TRL's own scripts ignore `lerning_rate` in silence, and argparse takes `--learning_r` for
    `--learning_rate`.
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
        args = list(sys.argv[1:] if args is None else args)
        try:
            *parsed, from_recipe, from_command_line = self.parse_args_and_config(
                args, return_remaining_strings=True, separate_remaining_strings=True
            )
            unknown = [word for word in [*from_recipe[::2], *from_command_line] if word.startswith("--")]
            if unknown or from_command_line:
                raise ValueError(self._explain(unknown, from_command_line))
        except (ValueError, TypeError, OSError) as error:
            print(f"{self.prog}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        return tuple(parsed)

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
