"""Records of other collections of instructions, FLAN and Super-NaturalInstructions, put as our instances are.

FLAN (Longpre et al., 2023) and its relatives (P3, xP3) are published as records with an input and a target, under one
of a few pairs of names. A task of Super-NaturalInstructions (Wang et al., 2022) is one JSON object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cappy_lite.errors import InputValueError

# Names of input and target, the most telling first: P3 has token ids under "inputs" beside its texts.
FLAN_FIELDS = (("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"), ("input", "target"))
_TASK_FIELDS = ("task_name", "_task_name", "task")
_TEMPLATE_FIELDS = ("template_type", "_template_type", "template")
# FLAN's way to give choices: a line "OPTIONS:" and a line "- ..." for each.
_OPTIONS = re.compile(r"^options:[ \t]*((?:\n- .*)+)", re.IGNORECASE | re.MULTILINE)


def is_flan(record: dict[str, Any]) -> bool:
    return any({of_input, of_target} <= record.keys() for of_input, of_target in FLAN_FIELDS)


def is_superni(record: dict[str, Any]) -> bool:
    return {"Definition", "Instances"} <= record.keys()


def from_flan(record: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """The instance of a FLAN record; `name` and `number` are those of its file and line, for its id and task.

    The target may be one text or a list of right ones. Choices are those that the input lists as FLAN does, if every
    target is one of them.
    """
    for of_input, of_target in FLAN_FIELDS:
        if {of_input, of_target} <= record.keys():
            break
    else:
        pairs = "; ".join(f"{of_input} and {of_target}" for of_input, of_target in FLAN_FIELDS)
        raise InputValueError(f"has no input and target, which FLAN calls: {pairs}")
    instruction = _text(record[of_input], of_input)
    targets = record[of_target] if isinstance(record[of_target], list) else [record[of_target]]
    references = _distinct(_text(target, of_target) for target in targets)
    if not references:
        raise InputValueError(f"{of_target} is an empty list")
    return {
        "id": f"{name}:{number}",
        "task": _first(record, _TASK_FIELDS) or name,
        "template": _first(record, _TEMPLATE_FIELDS),
        "instruction": instruction,
        "references": references,
        "choices": _choices(record, instruction, references),
        "split": "train",
    }


def _choices(record: dict[str, Any], instruction: str, references: list[str]) -> list[str] | None:
    given = record.get("answer_choices")
    if isinstance(given, list):
        choices = _distinct(_text(choice, "answer_choices") for choice in given)
    else:
        options = _OPTIONS.findall(instruction)
        choices = _distinct(line[2:].strip() for line in options[-1].split("\n") if line) if options else []
    return choices if choices and set(references) <= set(choices) else None


def from_superni(record: dict[str, Any], name: str, *, examples: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The instances of a Super-NaturalInstructions task, each with its place in the file.

    An instruction is the task's definition, a blank line and the input; with `examples` the first positive examples
    stand between, in the words of that paper's own models.
    """
    definition = record.get("Definition")
    parts = definition if isinstance(definition, list) else [definition]
    head = "\n".join(_text(part, "Definition") for part in parts)
    shown = _list(record.get("Positive Examples") or [], "Positive Examples")[:examples]
    for at, example in enumerate(shown):
        place = f"Positive Examples[{at}]"
        given, output = _text(_field(example, "input", place), place), _text(_field(example, "output", place), place)
        head += f"\n\nPositive Example {at + 1} -\nInput: {given}\nOutput: {output}"
    licences = record.get("Instance License") or []
    for at, instance in enumerate(_list(record.get("Instances"), "Instances")):
        place = f"Instances[{at}]"
        given = _text(_field(instance, "input", place), f"{place}, input")
        outputs = _field(instance, "output", place)
        references = _distinct(
            _text(output, f"{place}, output") for output in (outputs if isinstance(outputs, list) else [outputs])
        )
        if not references:
            raise InputValueError(f"{place}, output is an empty list")
        middle = "\n\nNow complete the following example -\nInput: " if shown else "\n\n"
        yield (
            place,
            {
                "id": instance.get("id") or f"{name}:{at}",
                "task": Path(name).name,
                "template": None,
                "instruction": head + middle + given + ("\nOutput:" if shown else ""),
                "references": references,
                "split": "train",
                "licence": ", ".join(map(str, licences)) if isinstance(licences, list) and licences else None,
            },
        )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputValueError(f"{name} should be a text that is not empty")
    return value.strip()


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputValueError(f"{name} should be a list")
    return value


def _field(value: object, key: str, place: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise InputValueError(f"{place} should be an object with {key}")
    return value[key]


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((record[key] for key in keys if isinstance(record.get(key), str) and record[key]), None)


def _distinct(texts: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(texts))
