"""Checks of what callers pass; each error names the argument, the item and the fix."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set

from cappy_lite.errors import InputTypeError, InputValueError


def check_text(name: str, value: object) -> str:
    """`value`, if it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InputTypeError(f"{name} must be a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputValueError(
            f"{name} has a lone surrogate at character {error.start}, which is no text: replace it, for example by "
            "text.encode(errors='replace').decode()"
        ) from None
    return value


def check_texts(name: str, values: object) -> list[str]:
    """A new list of the texts in `values`, which may be any ordered collection of str."""
    return [check_text(f"{name}[{index}]", value) for index, value in enumerate(check_list(name, values))]


def check_list(name: str, values: object, *, of: str = "str") -> list[object]:
    """A new list of the items of `values`; text, sets and mappings are refused, since they are no lists of items."""
    if isinstance(values, str):
        raise InputTypeError(f"{name} must be a list of {of}, not a single str: put it in a list")
    if not isinstance(values, Iterable) or isinstance(values, (bytes, Mapping, Set)):
        raise InputTypeError(f"{name} must be a list of {of}, not {type(values).__name__}")
    return list(values)


def check_count(name: str, value: object) -> int:
    """`value`, if it is a whole number of at least 1."""
    try:
        count = operator.index(value)  # type: ignore[arg-type]  # the check itself
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise InputTypeError(f"{name} must be an int or None, not {type(value).__name__}")
    if count < 1:
        raise InputValueError(f"{name} must be at least 1, or None, not {count}")
    return count
