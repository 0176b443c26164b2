"""Values of settings that come from Python, where nothing has read them as text: numbers, lists, choices."""

from __future__ import annotations

import dataclasses
import functools
import types
from numbers import Real
from typing import Union, get_args, get_origin, get_type_hints


@functools.cache
def _kinds(of: type) -> dict[str, tuple[type, dict]]:
    """Fields of a dataclass: what each holds where it holds something, and its metadata."""
    hints = get_type_hints(of)
    kinds = {}
    for field in dataclasses.fields(of):
        kind = hints[field.name]
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(one for one in get_args(kind) if one is not type(None))
        kinds[field.name] = (kind, field.metadata)
    return kinds


def check_numbers(settings: object, of: type) -> None:
    """
    Args:
        settings: a dataclass instance.
        of (`type`): the dataclass, it or a parent of it, whose fields are looked at.

    Raises:
        `ValueError`: a field of numbers has something else.
    """
    for name, (kind, _) in _kinds(of).items():
        value = getattr(settings, name)
        if value is None or kind not in (int, float):
            continue
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"`{name}={value!r}` is of the type {type(value).__name__}. Set it to a number.")


def as_lists(settings: object) -> None:
    """Makes a list of one of a single value where a list is wanted, as the command line does, in place."""
    for name, (kind, _) in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if value is not None and get_origin(kind) is list:
            several = isinstance(value, list | tuple | set | range)
            setattr(settings, name, list(value) if several else [value])


def check_choices(settings: object) -> None:
    """
    Raises:
        `ValueError`: a field, or one of its list, is none of the choices that its metadata has.
    """
    for name, (kind, metadata) in _kinds(type(settings)).items():
        value, choices = getattr(settings, name), metadata.get("choices")
        if value is None or choices is None:
            continue
        for one in value if get_origin(kind) is list else [value]:
            if one not in choices:
                raise ValueError(f"`{name}: {one}` is unknown; there are {', '.join(map(str, choices))}.")
