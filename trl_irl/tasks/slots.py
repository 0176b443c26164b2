"""
Which slots of an E2E meaning representation a text names, misses or invents, by rules.

A representation is `name[The Mill], priceRange[cheap], near[Ranch]`. `name` and `near` are named if they stand in the
text, whatever their case and accents. Of the other slots each value has a pattern, and people do not keep to the words
of a representation: "5 out of 5", "five stars" and "highly rated" are one level of `customer rating`, "cheap" and
"less than £20" one of `priceRange`. A slot is right if its level is in the text and no other level of it; wrong if
only another is, or another as well; missing if none is. A slot that the representation has not is invented if a level
of it is in the text. "Restaurant" is what people call any such place, so it is never wrong and never invented.

The slot error rate is (missing + wrong + invented) / slots (arXiv 1508.01745). The rules were written looking at the
development set alone.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


_SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[([^\]]*)\]\s*")

_LOW = "low|lower|poor|poorly|bad|badly|terrible"
_AVERAGE = "average|averagely|decent|ok|okay|mediocre|moderate|moderately|mid|middling|fair"
_HIGH = "high|highly|higher|excellent|great|top|perfect|best|well|very good"
_BETWEEN = (
    r"(?:(?:is|are|was|were|of|as|at|it|a|an|the|very|by|from|them|customers?|being|only|just|its|has|have|quite|"
    r"rather|in)\b ?)*"
)
_POUNDS = "(?:gbp ?|£ ?)?"


def _rating(word: str, stars: str) -> tuple[str, ...]:
    rated = r"(?:rat(?:ed|ings?|es?)|reviews?|reviewed|star(?:red)?|scores?)\b"
    return (
        rf"\b(?:{word})[ -]*(?:(?:overall|quality|customers?|costumer|consumer|service|5|five)[ -]*)*{rated}",
        rf"\b(?:rat(?:ed|ings?|es?)|reviews?|scores?)\b[ :]*{_BETWEEN}(?:{word})\b(?![ -]*(?:pric|cost|\w+ pric))",
        rf"\b(?:{stars}) ?(?:out of|out|of) ?(?:a possible )?(?:5|five)\b",
        rf"\b(?:{stars}) ?/ ?5\b",
        rf"(?<!of )(?<!out )(?<!/)(?<!/ )\b(?:{stars})[ -]+stars?\b",
    )


def _price(word: str) -> tuple[str, ...]:
    return (
        rf"\b(?:{word})[ -]*(?:(?:in|menu|food)[ -]*)?(?:cost\w*|pric\w+)",
        rf"\b(?:costs?|pric(?:es?|ed|ing)|price[ -]?ranges?)\b[ :]*{_BETWEEN}(?:{word})\b(?![ -]*(?:customer|rat))",
    )


# Levels of a slot by what names them, in lower case and without accents.
_LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "priceRange": {
        "low": (
            r"\bcheap\w*|\binexpensive\w*|\baffordabl\w+|\bnot (?:too |very )?expensive|\blow[ -]budget",
            rf"\b(?:less|lower|cheaper|no more|not more) than {_POUNDS}(?:20|twenty)\b",
            rf"\b(?:under|below|up to|within|beneath) {_POUNDS}(?:20|twenty)\b",
            *_price("low|lower|bargain"),
        ),
        "average": (
            r"\bmoderate(?:ly)?\b(?! (?:customer|rat|overall))",
            r"\breasonabl\w+|\bmid[ -]?(?:dle)?[ -]?(?:range|price)",
            r"(?:£ ?)?20 ?(?:-|–|to|and|£| )+ ?(?:£ ?)?25\b|\btwenty to twenty",
            *_price("average|averagely|medium|mid|middle|fair|fairly|decent"),
        ),
        "high": (
            r"(?<!in)(?<!not )(?<!not too )(?<!not very )\bexpensive\w*",
            r"\bpric(?:e)?y\b|\bupscale\b|\bhigh[ -]end\b|\bcostly\b",
            rf"\b(?:more|over|above|greater|higher|upwards?|from|starting at)(?: than| of)? {_POUNDS}(?:30|thirty)\b",
            r"(?:30|thirty)(?: pounds?)? (?:and up|and over|and above|plus|or more|minimum)|£?30\+",
            *_price("high|highly|higher"),
        ),
    },
    "customer rating": {
        "low": _rating(_LOW, "1|one"),
        "average": _rating(_AVERAGE, "3|three"),
        "high": _rating(_HIGH, "5|five"),
    },
    "familyFriendly": {
        "no": (
            r"(?:\b(?:not?|non|never|without|nor|isnt|arent|dont|doesnt|cannot|lacks?)\b|n't\b)"
            r"(?:[ -]+(?!(?:but|only|just)\b)\w+){0,4}?[ -]+(?:famil|kid|child)",
            r"\badults?\b|\b(?:kid|child)[ -]free\b|\b18\+",
            r"\b(?:famil\w+|kids?|child(?:ren)?)[ -]+(?:are |is )?(?:not|unfriendly)\b",
        ),
        "yes": (r"\b(?:famil\w+|kids?|kid\w+|child\w*)|\ball ages?\b",),
    },
    "area": {
        "riverside": (r"\briver",),
        "city centre": (
            r"\b(?:city|town)[ -]*(?:cent(?:er|re|ral)|area)",
            r"\bcent(?:er|re)\w* (?:of|in) (?:the )?(?:city|town|cambridge)",
            r"\bdowntown\b|\bcity\b",
        ),
    },
    "eatType": {
        "coffee shop": (r"\bcoffee\b|\bcafe\b",),
        "pub": (r"\bpubs?\b|\bbar\b|\btavern\b",),
        "restaurant": (r"\brestaurants?\b|\beatery\b|\bdiner\b|\bplace to eat\b",),
    },
    "food": {
        "english": (r"\benglish\b|\bbritish\b(?! pound)|\bfish and chips\b",),
        "chinese": (r"\bchinese\b|\bchina\b",),
        "french": (r"\bfrench\b|\bfrance\b",),
        "italian": (r"\bitalian?\b|\bpasta\b|\bitaly\b",),
        "japanese": (r"\bjapan(?:ese)?\b|\bsushi\b",),
        "indian": (r"\bindian?\b|\bcurry\b",),
        "fast food": (r"\bfast[ -]?food\b|\bburgers?\b",),
    },
}
_LEVEL_OF = {
    "cheap": "low",
    "less than £20": "low",
    "moderate": "average",
    "£20-25": "average",
    "more than £30": "high",
    "1 out of 5": "low",
    "3 out of 5": "average",
    "5 out of 5": "high",
}
_ANYWHERE_NEAR = re.compile(
    r"\b(?:near(?:by|est)?|close(?: by)? to|next to|beside|opposite|across from|not far from|around the corner from) "
    r"(?:to )?(?!(?:the |a )?(?:\w+ )?(?:river|city|town|cent|area|you|it\b|here))(?:the )?[a-z]"
)


@dataclass(frozen=True)
class SlotErrors:
    """
    Attributes:
        right, missing, wrong, invented (`tuple[str, ...]`):
            Names of slots; those of the representation are in one of the first three.
    """

    right: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    invented: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        """`slots_right`, the share of the representation's slots, and `slot_error_rate`, which can be above 1."""
        count = len(self.right) + len(self.missing) + len(self.wrong)
        errors = len(self.missing) + len(self.wrong) + len(self.invented)
        return {"slots_right": len(self.right) / count, "slot_error_rate": errors / count}


def slots_of(representation: str) -> dict[str, str]:
    """
    The slots of `name[The Mill], priceRange[cheap]` with their values.

    Raises:
        `ValueError`: it is not written so, has no slot, or a slot has no value.
    """
    parts = list(_SLOT.finditer(representation))
    if not parts or _SLOT.sub("", representation).strip(" ,"):
        shown = representation if len(representation) <= 80 else representation[:77] + "..."
        raise ValueError(f"{shown!r} is no meaning representation: it must be written `slot[value], slot[value]`.")
    slots = {match[1]: match[2].strip() for match in parts}
    if empty := [name for name, value in slots.items() if not value]:
        raise ValueError(
            f"{representation[:80]!r} gives {' and '.join(empty)} no value: a text cannot be right or wrong."
        )
    return slots


def slot_errors(text: str, slots: Mapping[str, str]) -> SlotErrors:
    """What a text says of [`slots_of`] a representation, and what it adds to them."""
    text = _plain(text)
    found: dict[str, list[str]] = {"right": [], "missing": [], "wrong": [], "invented": []}
    for slot in ("name", "near"):
        if slot in slots:
            place = _place(slots[slot])
            found["right" if place.search(text) else "missing"].append(slot)
            text = place.sub(" xxxx ", text)  # so that its words name no other slot
    if "near" not in slots and _ANYWHERE_NEAR.search(text):
        found["invented"].append("near")
    for slot, levels in _LEVELS.items():
        named = [level for level, patterns in levels.items() if _compiled(patterns).search(text)]
        if slot == "familyFriendly" and "no" in named:  # a denial names what it denies
            named = ["no"]
        value = slots.get(slot)
        others = [level for level in named if level != "restaurant"]
        if value is None:
            found["invented"] += [slot] if others else []
            continue
        level = _LEVEL_OF.get(value, value.lower())
        if level not in levels:  # a value that no rule knows
            named, others = ([level], [level]) if _place(value).search(text) else (named, others)
        if level in named and not set(others) - {level}:
            found["right"].append(slot)
        else:
            found["wrong" if set(others) - {level} else "missing"].append(slot)
    for slot in slots.keys() - _LEVELS.keys() - {"name", "near"}:  # of another domain
        found["right" if _place(slots[slot]).search(text) else "missing"].append(slot)
    return SlotErrors(**{name: tuple(of) for name, of in found.items()})


def _plain(text: str) -> str:
    """Lower-case, without accents, one space between words."""
    letters = unicodedata.normalize("NFD", text.lower().replace("’", "'"))
    return re.sub(r"\s+", " ", "".join(letter for letter in letters if not unicodedata.combining(letter)))


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(patterns))


@cache
def _place(name: str) -> re.Pattern:
    """A name, its "the" left off or not, and as people hyphenate it."""
    words = [re.escape(word) for word in re.split(r"[\s-]+", _plain(name).removeprefix("the ").strip()) if word]
    return re.compile(rf"(?<!\w){'[ -]*'.join(words)}(?!\w)")
