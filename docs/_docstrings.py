"""For `make docs`: docstrings, which are in Hugging Face's form as TRL's are, as Markdown."""

import re

import griffe


_SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Raises):$")
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?!\()")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Sections as lists, and ``[`~trl.SFTTrainer`]`` as `SFTTrainer`."""
    lines, inside = [], False
    for line in docstring.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if _SECTION.match(line):
            inside = True
            lines += ["", f"**{text}**", ""]
        elif not text or indent == 0:
            inside = inside and not text
            lines.append(line)
        elif not inside:
            lines.append(line)
        elif text.startswith("> "):
            lines += ["", f"*{text[2:]}*", ""]
        elif indent == 4:
            item = re.match(r"[\w*, ]+(?= \()", text)
            lines.append(f"- {'`' + item[0] + '`' + text[item.end() :] if item else text}")
        else:
            lines.append(f"    {text}")
    return _REFERENCE.sub(lambda match: f"`{match[2].rpartition('.')[2] if match[1] else match[2]}`", "\n".join(lines))
