"""
List the recipes that come with trl-irl: what each trains, on what hardware, and the program that reads it.

```bash
trl-irl recipes
trl-irl recipes --about gsm8k
trl-irl irl --config gsm8k/irl_lora --accelerate_config single_gpu
```

`--config` takes a recipe by its name from any folder.
"""

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from .console.command import command
from .console.recipe_file import shipped_recipes


@dataclass
class RecipesArguments:
    """
    Arguments of the `recipes` command.

    Args:
        about (`str`, *optional*):
            Only recipes whose name has this in it.
    """

    about: str | None = field(default=None, metadata={"help": "List only recipes whose name has this in it."})


def described(path: Path) -> tuple[str, str]:
    """Hardware and purpose of a recipe, from the comment on its first lines: `# Hardware: one. The other.`"""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = " ".join(comment).removeprefix("Hardware:").strip()
    hardware, _, purpose = re.sub(r"\.(?=\s)", "\n", text, count=1).partition("\n")
    return hardware.strip(), purpose.strip()


def program_of(path: Path) -> str:
    """
    The program that reads a recipe: what its comment names (``for `trl rloo` ``), else the command of ours that its
    name begins with, else `trl-irl irl`.
    """
    hardware, purpose = described(path)
    if named := re.search(r"for `(trl(?:-irl)? [\w-]+)`", f"{hardware}. {purpose}"):
        return named[1]
    name = path.stem.replace("_", "-")
    return next(
        (f"trl-irl {command}" for command in ("online-irl", "gail", "ppo") if name.startswith(command)), "trl-irl irl"
    )


def main(arguments: RecipesArguments) -> None:
    """
    Print the list.

    Raises:
        `ValueError`: no recipe's name has `about` in it.
    """
    import shutil

    recipes = {name.removeprefix("recipes/").removesuffix(".yaml"): path for name, path in shipped_recipes().items()}
    shown = {name: path for name, path in recipes.items() if (arguments.about or "") in name}
    if not shown:
        folders = ", ".join(dict.fromkeys(name.partition("/")[0] for name in recipes))
        raise ValueError(f"`--about {arguments.about}`: no recipe has that in its name. They are of {folders}.")
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    for name, path in shown.items():
        hardware, purpose = described(path)
        program = program_of(path)
        print(f"{program} --config {name if program.startswith('trl-irl') else path}")  # TRL's take no names
        for line in (hardware, purpose):
            print(textwrap.fill(line, width, initial_indent="    ", subsequent_indent="    "))


make_parser, run = command("recipes", RecipesArguments, __doc__, main)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
