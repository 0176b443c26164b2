"""Values of settings that come from Python, where nothing has read them as text: numbers, lists, choices."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterable
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class _Kind(NamedTuple):
    of: Any  # the annotation of a value, or of those in its list
    is_list: bool
    may_be_none: bool
    choices: list | None


@functools.cache
def _kinds(of: type) -> dict[str, _Kind]:
    """Fields of a dataclass and what each holds, but for those whose annotation cannot be resolved."""
    hints = {}
    for parent in reversed(of.__mro__):
        try:
            hints |= get_type_hints(parent)
        except NameError:  # of a subclass of the user's
            continue
    kinds = {}
    for field in dataclasses.fields(of):
        if field.name not in hints:
            continue
        kind, optional = hints[field.name], False
        if get_origin(kind) in (Union, types.UnionType):
            optional = type(None) in get_args(kind)
            kind = next(one for one in get_args(kind) if one is not type(None))
        is_list = get_origin(kind) is list
        of_value = (get_args(kind) or (Any,))[0] if is_list else kind
        kinds[field.name] = _Kind(of_value, is_list, optional, field.metadata.get("choices"))
    return kinds


def check_kinds(settings: object, of: type) -> None:
    """
    Numbers of other libraries become Python's, in place.

    Args:
        settings: a dataclass instance.
        of (`type`): the dataclass, it or a parent of it, whose fields are looked at.

    Raises:
        `ValueError`: a number, a whole number, or true or false is wanted, and something else is there.
    """
    for name, kind in _kinds(of).items():
        value = getattr(settings, name)
        if kind.of not in (int, float, bool) or (value is None and kind.may_be_none):
            continue
        is_list = kind.is_list and value is not None
        numbers = []
        for one in value if is_list else [value]:
            try:
                numbers.append(_number(one, kind.of))
            except (TypeError, ValueError, RuntimeError):
                wanted = {int: "a whole number", float: "a number", bool: "True or False"}[kind.of]
                told = f"{one!r} in it" if is_list else "it"
                raise ValueError(
                    f"`{name}={value!r}`: {told} is of the type {type(one).__name__}. Set it to {wanted}."
                ) from None
        setattr(settings, name, numbers if is_list else numbers[0])


def _number(value, of: type):
    if of is bool:
        if isinstance(value, str):
            raise TypeError
        return value
    if type(value) in (int, of):
        return value
    if isinstance(value, str | bytes | bool):
        raise TypeError
    number = float(value)
    if of is int and number % 1:  # of an infinite one it is NaN
        raise ValueError
    return of(number)


def as_lists(settings: object) -> None:
    """Makes a list of one of a single value where a list is wanted, as the command line does, in place."""
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if kind.is_list and value is not None:
            several = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1)
            setattr(settings, name, list(value) if several else [value])


def check_choices(settings: object) -> None:
    """
    Raises:
        `ValueError`: a field, or one of its list, is none of the choices that its metadata has.
    """
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if kind.choices is None or (value is None and kind.may_be_none):
            continue
        for one in value if kind.is_list else [value]:
            if one not in kind.choices:
                raise ValueError(f"`{name}: {one}` is unknown; there are {', '.join(map(str, kind.choices))}.")
