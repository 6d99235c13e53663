"""Instances from rows and PromptSource templates (Bach et al., 2022): Jinja that gives a prompt and its answer."""

from __future__ import annotations

import difflib
import random
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Template as Compiled
from jinja2 import TemplateError, TemplateSyntaxError, meta, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

from cappy_lite.errors import InputValueError
from cappy_train.instances import Instance

SEPARATOR = "|||"
# Stands for a separator within a row's own texts while the template runs: three code points that no text has.
_HIDDEN = "\ufdd0\ufdd1\ufdd2"
# The name under which the draws of `choice` and `random` reach them; no template reads it.
_DRAWS = "_draws"


@dataclass(frozen=True, slots=True)
class Template:
    """A PromptSource template; `answer_choices` is itself Jinja, choices between `|||`, or None."""

    name: str
    jinja: str
    answer_choices: str | None


@dataclass(frozen=True, slots=True)
class Nothing:
    """What a template makes of a row that it isn't for; `reason` says why, in words that rows have in common."""

    reason: str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C where PyYAML has that
    """Reads PromptSource's two tags as plain mappings; constructs nothing else."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def read_templates(source: Path, dataset: str, subset: str | None = None) -> list[Template]:
    """The templates of one data set, by name.

    Args:
        source: a folder or an archive (tar, plain or compressed, or zip) with `<dataset>/templates.yaml` and
            `<dataset>/<subset>/templates.yaml` anywhere in it, such as PromptSource's; or one such YAML file alone.
        dataset, subset: as PromptSource and Hugging Face call them; "glue/mrpc" is glue, mrpc.

    Raises:
        InputValueError: the source or the data set is missing, can't be read, or has a template that isn't valid Jinja.
    """
    name = f"{dataset}/{subset}" if subset else dataset
    collection = read_collection(source)
    if source.suffix in {".yaml", ".yml"}:
        (content,) = collection.values()
    elif name in collection:
        content = collection[name]
    else:
        raise InputValueError(f"{source} has no templates/{name}/templates.yaml; {_advice(name, list(collection))}")
    return parse_templates(content, f"{source}, {name}")


def read_collection(source: Path) -> dict[str, bytes]:
    """The YAML files of a folder or an archive, by data set: "ag_news", or with a subset "glue/mrpc".

    Raises:
        InputValueError: it is missing, can't be read, or has no such file.
    """
    try:
        files = {_dataset(path): content for path, content in _files(source) if path.endswith("templates.yaml")}
    except FileNotFoundError as error:
        raise InputValueError(f"{source}: no such folder or archive of templates") from error
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputValueError(f"{source} can't be read as an archive of templates: {error}") from error
    if source.suffix in {".yaml", ".yml"}:
        return {source.stem: source.read_bytes()}
    if not files:
        raise InputValueError(f"{source} has no file <data set>/templates.yaml")
    return dict(sorted(files.items()))


def parse_templates(content: bytes, where: str) -> list[Template]:
    """The templates of a PromptSource YAML file, by name; `where` names it in messages.

    Raises:
        InputValueError: it isn't such a file, or a template isn't valid Jinja.
    """
    try:
        entries = yaml.load(content, _Loader)["templates"].values()
        templates = [Template(entry["name"].strip(), entry["jinja"], entry.get("answer_choices")) for entry in entries]
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise InputValueError(f"{where}: is no file of PromptSource templates ({error!r})") from error
    for template in templates:
        _check(template, where)
    return sorted(templates, key=lambda template: template.name)


def render(
    template: Template,
    row: Mapping[str, Any],
    *,
    id: str,
    task: str,
    split: str = "train",
    seed: int = 0,
    longest: int | None = None,
) -> Instance | Nothing:
    """What a template makes of a row: an instance; or nothing, where there is no prompt or no answer that it offers.

    As PromptSource does it: prompt and answer are what stands around `|||` (further answers may follow, each after
    another one), without space at their ends; `|||` within the row's own texts separates nothing. But a field that the
    row hasn't gives nothing, rather than an empty place.

    Args:
        id, task, split: the instance's.
        seed: of what the template draws at random, together with `id` and the template's name.
        longest: values that are printed into prompt and answer are cut to so many characters; PromptSource's own
            default is 2,048.

    Raises:
        InputValueError: the template reaches for more than the row; the message names it.
    """
    try:
        missing = _fields(template) - row.keys()
    except TemplateSyntaxError as error:
        raise InputValueError(f"{task}, template {template.name!r}: {error}") from error
    if missing:
        return Nothing(f"the row has no field {', '.join(sorted(missing))}")
    if row.get("label") == -1:  # which would choose the last answer
        return Nothing("the row's label is -1: hidden")
    variables = {key: _hidden(value) for key, value in row.items()}
    variables[_DRAWS] = random.Random(f"{seed}:{id}:{template.name}")
    try:
        choices = _texts(_compiled(template.answer_choices).render(variables)) if template.answer_choices else None
        prompt, *answers = _texts(_compiled(template.jinja, longest).render(variables, answer_choices=choices))
    except SecurityError as error:
        raise InputValueError(f"{task}, template {template.name!r}: {error}") from error
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Nothing(f"{type(error).__name__}: {error}")
    references = tuple(dict.fromkeys(answer for answer in answers if answer))
    offered = tuple(dict.fromkeys(choice for choice in choices or () if choice)) or None
    if not prompt:
        return Nothing("no prompt")
    if not references:
        return Nothing("no answer")
    if offered and not set(references) <= set(offered):
        return Nothing("an answer that isn't among its choices")
    try:
        "".join([prompt, *references, *(offered or ())]).encode()
    except UnicodeEncodeError:
        return Nothing("a lone surrogate, which is no text")
    return Instance(id, task, template.name, prompt, references, (), offered, split)


def task_name(dataset: str, subset: str | None = None) -> str:
    """What T0's training data calls a data set's task: "glue_mrpc", "super_glue_wsc.fixed"."""
    return re.sub(r"[^\w.]+", "_", f"{dataset}_{subset}" if subset else dataset)


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in source.rglob("templates.yaml"):
            yield path.relative_to(source).as_posix(), path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as zipped:
            yield from ((name, zipped.read(name)) for name in zipped.namelist())
    elif source.suffix not in {".yaml", ".yml"} or not source.exists():
        with tarfile.open(source) as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)):
                    yield member.name, file.read()


def _dataset(path: str) -> str:
    """A file's data set: the folders that it is in, below the last one called "templates" if there is one."""
    folders = [folder for folder in path.split("/")[:-1] if folder != "."]
    if "templates" in folders:
        folders = folders[len(folders) - folders[::-1].index("templates") :]
    return "/".join(folders)


def _advice(name: str, known: Sequence[str]) -> str:
    subsets = [other.removeprefix(f"{name}/") for other in known if other.startswith(f"{name}/")]
    if subsets:
        return f"give one of its subsets: {', '.join(subsets)}"
    if name.rpartition("/")[0] in known:
        return f"{name.rpartition('/')[0]} has no subsets"
    like = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
    return f"it has {len(known)} data sets, such as {', '.join(like)}"


def _check(template: Template, where: str) -> None:
    for text in (template.name, template.jinja, template.answer_choices or ""):
        if not isinstance(text, str):
            raise InputValueError(f"{where}, template {template.name!r}: name, jinja and choices should be texts")
    try:
        _fields(template)
        _compiled(template.jinja)
    except TemplateError as error:
        raise InputValueError(f"{where}, template {template.name!r}: {error}") from error


@cache
def _fields(template: Template) -> frozenset[str]:
    """The fields of a row that a template reads."""
    environment = _environment(None)
    used = {
        name
        for text in (template.jinja, template.answer_choices)
        if text
        for name in meta.find_undeclared_variables(environment.parse(text))
    }
    return frozenset(used - environment.globals.keys() - {"answer_choices"})


@cache
def _compiled(source: str, longest: int | None = None) -> Compiled:
    return _environment(longest).from_string(source)


@cache
def _environment(longest: int | None) -> SandboxedEnvironment:
    """Jinja with what PromptSource adds to it. Templates are data from elsewhere: they reach nothing but the row."""

    def cut(value: Any) -> str:
        return str(environment.call_filter("truncate", str(value), [longest]))

    environment = SandboxedEnvironment(finalize=cut if longest else None)
    environment.globals["zip"] = zip
    environment.filters |= {"choice": _choice, "random": _choice, "most_frequent": most_frequent}
    return environment


@pass_context  # so that Jinja doesn't work it out once and for all where the items are constant
def _choice(context: Context, items: Sequence[Any]) -> Any:
    """An item drawn at random: the same for the same seed, row and template."""
    return context[_DRAWS].choice(items)


def most_frequent(items: Iterable[Any] | None) -> list[Any] | None:
    """The items that occur most often, in the order of their first occurrence; None of none."""
    counts = Counter(items or ())
    return [item for item in counts if counts[item] == max(counts.values())] if counts else None


def _hidden(value: Any) -> Any:
    """A value of a row without separators in its texts; a copy, since templates may append to lists."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, _HIDDEN)
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    if isinstance(value, dict):
        return {key: _hidden(item) for key, item in value.items()}
    return value


def _texts(rendered: str) -> list[str]:
    """What stands between separators, with those of the row's own texts back in their places."""
    return [part.replace(_HIDDEN, SEPARATOR).strip() for part in rendered.split(SEPARATOR)]
