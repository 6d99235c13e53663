"""Readers of instances: JSON Lines, plain or gzip, checked line by line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cappy_lite.errors import InputValueError

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response that some system gave, and the system's name."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One instruction with its right responses.

    id: unique in its file. Where several templates render one example, the template's name ends the id.
    template: name of the template that rendered the instruction, or None.
    references: right responses, at least one.
    candidates: recorded responses of other systems, maybe none.
    choices: the responses to choose between, every reference among them; None for open generation.
    split: "train", "dev" or "test".
    licence: terms of the underlying data, where the file tells.
    """

    id: str
    task: str
    template: str | None
    instruction: str
    references: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    choices: tuple[str, ...] | None
    split: str
    licence: str | None = None


def read_instances(path: Path, *, split: str | None = None) -> Iterator[Instance]:
    """Instances of a JSON Lines file, in its order; a name that ends in .gz is read as gzip.

    Args:
        path: the file. Empty lines are passed over; keys beyond those of `Instance` are ignored.
        split: yield this split alone; every line is checked all the same.

    Raises:
        InputValueError: the file is missing or damaged, or a line is not a valid instance; the message names both.
    """
    if split is not None and split not in SPLITS:
        raise InputValueError(f"split is {split!r}: give one of {', '.join(SPLITS)}, or None for all")
    first_lines: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            instance = parse_instance(json.loads(line))
        except ValueError as error:  # not UTF-8, not JSON, or not an instance
            raise InputValueError(f"{path}, line {number}: {error}") from error
        if instance.id in first_lines:
            raise InputValueError(f"{path}, line {number}: id {instance.id!r} was line {first_lines[instance.id]}'s")
        first_lines[instance.id] = number
        if split is None or instance.split == split:
            yield instance


def parse_instance(record: object) -> Instance:
    """The instance that a decoded JSON value holds.

    Raises:
        InputValueError: a key is missing or its value can't be used; the message names the key.
    """
    if not isinstance(record, dict):
        raise InputValueError("an instance is a JSON object")
    references = _texts(record, "references")
    choices = None if record.get("choices") is None else _texts(record, "choices")
    if choices is not None and not set(references) <= set(choices):
        raise InputValueError("choices lacks a reference: list every reference among the choices, or give null")
    split = _text(record, "split")
    if split not in SPLITS:
        raise InputValueError(f"split is {split!r}: give one of {', '.join(SPLITS)}")
    return Instance(
        id=_text(record, "id"),
        task=_text(record, "task"),
        template=_optional_text(record, "template"),
        instruction=_text(record, "instruction"),
        references=references,
        candidates=_candidates(record),
        choices=choices,
        split=split,
        licence=_optional_text(record, "licence"),
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-empty lines of a file with their numbers from 1."""
    number = 0
    try:
        with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise InputValueError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputValueError(f"{path}, after line {number}: can't be read ({error})") from error


def _text(record: dict[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise InputValueError(f"{key} should be a text that is not empty")
    return value


def _optional_text(record: dict[str, object], key: str) -> str | None:
    return None if record.get(key) is None else _text(record, key)


def _texts(record: dict[str, object], key: str) -> tuple[str, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputValueError(f"{key} should be a list of one text or more")
    return tuple(value)


def _candidates(record: dict[str, object]) -> tuple[Candidate, ...]:
    value = record.get("candidates") or []
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and isinstance(item.get("text"), str) and isinstance(item.get("source"), str)
        for item in value
    ):
        raise InputValueError("candidates should be a list of objects, each with a text and a source")
    return tuple(Candidate(item["text"], item["source"]) for item in value)
