"""The `#### 72` that closes a GSM8K solution."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from ..text.messages import last_content


Answer = Decimal | Fraction | str

_WRAPPED = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm|mbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[()\[\],;! ]|\*\*|__|`|\\(?=[$%])|(?<=[^\W_])\{,\}(?=\d)")
_NUMBER = (
    r"\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?|\d{1,3}(?:[ ']\d{3})+(?:\.\d+)?|"  # 1,234 or 1 234
    r"\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|\.\d+"  # a longer exponent takes hours to write out
)
_AMOUNT = re.compile(  # a sign, a currency, a number, and words after it; the sign may stand on either side
    r"(?P<sign>[-+]?)\s*(?P<currency>(?:US|A|C|HK|NZ)?[$€£¥₹₩₽]\s*)?(?P<sign2>[-+]?)\s*"
    rf"(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<number>{_NUMBER})(?:\s*/\s*(?P<denominator>\d+))?"
    r"(?P<unit>(?:[^\W\d_]|[\s€£¥₹₩₽$¢%°²³.'’()/-])*)"
)
_NO_UNIT_SIGN = re.compile(r"(?<![^\W\d_])[-²³]|[-/](?![^\W\d_])")  # 5-, 5², 5/
_GREEK = re.compile(r"[α-ψ]")  # no ω, which is an ohm's in lower case
_WORDS = re.compile(r"[^\W\d_]+")
# Words after a number that change it, so that they are no unit.
_NO_UNIT_WORD = frozenset(
    "hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens lakh "
    "lakhs crore crores k bn half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths "
    "pi e i n x y z am pm squared cubed tens 百 千 万 亿".split()
)
# Words that join another number to it, where one follows: five and two, but clips and pins.
_JOINED = re.compile(
    r"\b(?:and|or|plus|minus|times|over|to|not)\s+(?:(?:an?|the|about|maybe|perhaps|almost|another)\s+)*(?:zero|one|two|"
    r"three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|"
    r"ninety|bit|more|less|itself|infinity|power|square|cube|root|[^\W\d_])\b"
)
_OF_DAY = re.compile(r"(?<![^\W\d_])[ap]\.\s*m\b")  # 10 a.m. is no amount
_MULTIPLES = frozenset("b bn m mm mn mio t tn".split())  # behind a currency: $5M


class NoFinalAnswer(ValueError):
    """A reference has no final answer to compare with."""


def final_answer(solution: str, marker: str | None = None) -> Answer | None:
    """
    What stands after the last `####` of a solution, or after the last line's beginning that is `marker` (such as `A:`)
    if that comes later, on its first line that is not empty.

    Returns:
        `Decimal`, `Fraction`, `str` or `None`: a number, `Fraction` for 1/3; thousands separators, a currency sign,
        emphasis (`**18**`, `\\boxed{18}`), a closing full stop and a unit after it (`18 apples`) are ignored. What has
        digits and is more than a number (12:30, 2^10, 3 million) is text without spaces, in lower case, which is
        compared as it is. `None` for anything else.
    """
    parts = _mark(marker).split(solution)[1:]
    lines = [part.strip().splitlines()[0] for part in parts if part.strip()]
    return _read(lines[-1]) if lines else None


def _mark(marker: str | None) -> re.Pattern:
    return re.compile("####+" if marker is None else rf"####+|^[ \t]*{re.escape(marker)}", re.MULTILINE)


def reference_answer(reference: str, marker: str | None = None) -> Answer | None:
    """
    The final answer of a reference: after its last `####` (or `marker`, see [`final_answer`]) or, where it has none
    and is nothing but an answer (`18`, `$1,000`, `5 km`, `12:30`), the whole of it. `None` for any other text, such as
    `The answer is 18`.
    """
    return final_answer(reference, marker) if _mark(marker).search(reference) else _bare(reference)


def answer_text(solution: str, marker: str | None = None) -> str:
    """
    What follows the last `####` (or `marker`) of a solution that anything follows or, without one, all of it: what
    math-verify is to look at. Of several lines the first, where that is an answer by itself and begins no formula.
    """
    whole, *parts = _mark(marker).split(solution)
    part = next((part for part in reversed(parts) if part.strip()), parts[-1] if parts else whole)
    if not parts or not part.strip():
        return part
    first = part.strip().splitlines()[0]
    is_whole = re.search(r"\d", first) and not re.search(r"\\\[|\\begin|```", first) and first.count("$") % 2 == 0
    return first if is_whole else part


def is_correct(prediction: str, row: dict, marker: str | None = None) -> bool:
    """Whether a sampled completion is right: the first that [`judge_answer`] tells."""
    return judge_answer(prediction, row, marker)[0]


def judge_answer(prediction: str, row: dict, marker: str | None = None) -> tuple[bool, bool]:
    """
    Whether a sampled completion ends in the same final answer as the row's own completion, and whether it gives one at
    all. Where the row's has no `####` and is an answer as a whole ([`reference_answer`]), the sampled one needs none
    either. `marker` is what may stand before an answer in place of `####`, at the beginning of a line.

    Raises:
        [`NoFinalAnswer`]: the row's completion has no final answer, so that nothing could be right.
    """
    reference = _text(row["completion"])
    right = reference_answer(reference, marker)
    if right is None:
        raise NoFinalAnswer(f"the reference {_shortened(reference)!r} has no final answer. {_HOW}")
    answer = given_answer(prediction, row, marker)
    return answer == right, answer is not None


def given_answer(prediction: str, row: dict, marker: str | None = None) -> Answer | None:
    """
    The final answer that [`judge_answer`] compares with the row's own: [`final_answer`] or, where neither text has a
    mark, the whole of a completion that is nothing but an answer.
    """
    answer = final_answer(prediction, marker)
    if answer is None and not any(_mark(marker).search(text) for text in (_text(row["completion"]), prediction)):
        answer = _bare(prediction)
    return answer


def accuracy_reward(
    completions: Sequence[str | list[dict]], reference: Sequence[str | list[dict]] | None = None, **kwargs
) -> list[float]:
    """
    The checker as a reward function of `trl grpo` and `trl rloo`: 1 where a completion ends in the final answer of its
    row's `reference`, else 0.

    ```yaml
    reward_funcs:
    - trl_irl.tasks.final_answer.accuracy_reward
    ```

    Args:
        completions (`Sequence[str]` or `Sequence[list[dict]]`):
            Text or messages.
        reference (as `completions`, or numbers):
            The dataset's column of that name, which `trl-irl prepare --reference_column reference` makes: TRL keeps
            the column `completion` from reward functions. A solution with `####`, or nothing but an answer.

    Raises:
        `ValueError`: there is no such column, or a row's is missing or has no final answer.
    """
    if reference is None:
        raise ValueError(
            "`accuracy_reward` compares with the dataset's column `reference`, which is not there. Make the dataset "
            "with `trl-irl prepare --reference_column reference`."
        )
    rewards = []
    for i, (completion, right) in enumerate(zip(completions, reference, strict=True)):
        try:
            rewards.append(float(is_correct(_text(completion), {"completion": right})))
        except ValueError as error:
            asked = kwargs.get("prompts")
            prompt = f" (prompt {_shortened(_text(asked[i]))!r})" if asked else ""
            raise ValueError(f"`accuracy_reward`: row {i} of this batch{prompt}: {error}") from error
    return rewards


_HOW = (
    "It is what follows `####`, or the whole reference where that is nothing but an answer, such as 18. Write "
    "references so (`#### 18`), or judge by another metric, such as accuracy_math."
)


def _text(value) -> str:
    """Text, the last of some messages, or a number as text."""
    said = last_content(value)
    if said is None or said == [] or said != said:  # NaN is what pandas makes of a missing cell
        raise NoFinalAnswer(f"the reference is {said}. {_HOW}")
    if isinstance(said, list | tuple | dict):
        raise NoFinalAnswer(
            f"it has {_shortened(repr(said))}, which is neither text nor a number nor a list of messages (`role`, "
            "`content`). Give each row one answer."
        )
    return said if isinstance(said, str) else str(said)


def _bare(text: str) -> Answer | None:
    if len(text.strip().splitlines()) != 1 or re.search(r"[\\=]", text):
        return None  # working, or LaTeX, whose answer is not what it is as a whole
    answer, words = _read(text), len(_WORDS.findall(_plain(text)))
    return answer if words <= (0 if isinstance(answer, str) else 1) else None


def _plain(text: str) -> str:
    """Without markup, its minus signs and spaces the plain ones."""
    text = text.replace("−", "-").replace("–", "-").replace("\\frac", "\\dfrac").replace("\\ddfrac", "\\dfrac")
    text = re.sub(r"[\u00a0\u2009\u202f]", " ", text)
    text = re.sub(r"[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/"), text)
    before = None
    while before != text:  # \boxed{\text{18}}
        before, text = text, _FRACTION.sub(r"\1/\2", _WRAPPED.sub(r"\1", text))
    text = _MARKUP.sub("", text).strip()
    text = re.sub(r"^\$([^$]+)\$(?=[\s.,;:]*$)", r"\1", text).strip()  # $18$
    text = re.sub(r"^(?:\(\s*([-+$€£\d.]+)\s*\)|\{\s*([-+$€£\d.]+)\s*\})(?=[\s.,;:]*$)", r"\1\2", text)  # (18), {18}
    return re.sub(r"""^([*_"'])(.+)\1$""", r"\2", text.rstrip(" .,;:")).rstrip(" .,;:")


def _read(text: str) -> Answer | None:
    plain = _plain(text)
    if not re.search(r"\d", plain):
        return None
    match = None if any(unicodedata.category(c) == "No" and c not in "²³" for c in plain) else _AMOUNT.fullmatch(plain)
    if match is not None and not (match["sign"] and match["sign2"]):
        unit = match["unit"].lower()
        number = _number(match)
        words = _WORDS.findall(unit)
        # A single Greek letter is a number or an unknown: 2π, 3θ.
        changed = any(word in _NO_UNIT_WORD or _GREEK.fullmatch(word) for word in words)
        changed = changed or words in (["a"], ["b"])  # unknowns; but $5 a day
        changed = changed or (match["currency"] and words and words[0] in _MULTIPLES)
        if changed or _JOINED.search(unit) or _NO_UNIT_SIGN.search(unit) or _OF_DAY.search(unit):
            number = None
        if number is not None:
            return number
    return re.sub(r"[\s{}]", "", plain).lower().removeprefix("+")


def _number(match: re.Match) -> Decimal | Fraction | None:
    try:
        number = Decimal(re.sub(r"[ ,']", "", match["number"]))
        if match["denominator"]:
            number = Fraction(number) / int(match["denominator"]) + int(match["whole"] or 0)
    except (InvalidOperation, ZeroDivisionError, ValueError):
        return None
    return -number if "-" in (match["sign"], match["sign2"]) else number


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
