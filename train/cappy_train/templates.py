"""Instances from rows and PromptSource templates (Bach et al., 2022): Jinja that gives a prompt and its answer."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Template as Compiled
from jinja2 import TemplateError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from cappy_lite.errors import InputValueError
from cappy_train.instances import Instance

SEPARATOR = "|||"


@dataclass(frozen=True, slots=True)
class Template:
    """A PromptSource template; `answer_choices` is itself Jinja, choices between `|||`, or None."""

    name: str
    jinja: str
    answer_choices: str | None


class _Loader(yaml.SafeLoader):
    """Reads PromptSource's two tags as plain mappings; constructs nothing else."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def read_templates(archive: Path, dataset: str) -> list[Template]:
    """The templates of one data set, by name, from a tar archive with `templates/<dataset>/templates.yaml`.

    Raises:
        InputValueError: the archive or the data set is missing or can't be read.
    """
    member = f"templates/{dataset}/templates.yaml"
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            content: dict[str, Any] = yaml.load(file, _Loader) if file else {}
    except (OSError, KeyError, tarfile.TarError, yaml.YAMLError) as error:
        raise InputValueError(f"{archive}: can't read {member} ({error})") from error
    entries = content.get("templates", {}).values()
    templates = [Template(entry["name"].strip(), entry["jinja"], entry["answer_choices"]) for entry in entries]
    return sorted(templates, key=lambda template: template.name)


def render(template: Template, row: dict[str, Any], *, id: str, task: str) -> Instance | None:
    """The training instance that a template makes of a row; None where it makes no prompt, or no answer that it offers.

    Raises:
        InputValueError: the template is not valid Jinja, or reaches for more than the row; the message names it.
    """
    choices = None
    try:
        if template.answer_choices:
            rendered = _compiled(template.answer_choices).render(row)
            choices = tuple(choice.strip() for choice in rendered.split(SEPARATOR))
        text = _compiled(template.jinja).render(row, answer_choices=choices)
    except UndefinedError:  # it reads a field that the row lacks
        return None
    except TemplateError as error:
        raise InputValueError(f"{task}, template {template.name!r}: {error}") from error
    prompt, _, answer = (part.strip() for part in text.partition(SEPARATOR))
    if not prompt or not answer or (choices and answer not in choices):
        return None
    return Instance(id, task, template.name, prompt, (answer,), (), choices, "train")


@cache
def _compiled(source: str) -> Compiled:
    # Templates are data from elsewhere: sandboxed, they reach nothing but the row.
    return SandboxedEnvironment().from_string(source)
