"""PromptSource templates to instances."""

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tiny_training import ROTTEN_TOMATOES, write_templates

from cappy_lite.errors import InputValueError
from cappy_train.instances import Instance
from cappy_train.templates import Nothing, Template, most_frequent, parse_templates, read_templates, render, task_name


def test_reads_and_renders(tmp_path: Path) -> None:
    write_templates(tmp_path / "templates.tar.gz", {"rotten_tomatoes": ROTTEN_TOMATOES})
    (template,) = read_templates(tmp_path / "templates.tar.gz", "rotten_tomatoes")
    instance = render(template, {"text": "a dull thing .", "label": 0}, id="r:0", task="rotten_tomatoes")
    assert isinstance(instance, Instance)
    assert instance.instruction == "a dull thing . Is the film good or bad?"
    assert instance.references == ("bad",)
    assert instance.choices == ("bad", "good")
    assert (instance.template, instance.split) == ("good or bad", "train")


@pytest.mark.parametrize(
    ("jinja", "choices", "row", "reason"),
    [
        ("{% if label == 1 %}{{text}} ||| yes{% endif %}", None, {}, "no prompt"),
        ("{{text}}", None, {}, "no answer"),
        ("{{text}} ||| ", None, {}, "no answer"),
        ("{{text}} ||| {{answer_choices[missing]}}", "no ||| yes", {}, "no field missing"),
        ("{{text}} ||| maybe", "no ||| yes", {}, "isn't among its choices"),
        ("{{text}} ||| {{answer_choices[label]}}", "no ||| yes", {"label": 2}, "isn't|no answer"),
        ("{{text}} ||| {{answer_choices[label]}}", "no ||| yes", {"label": -1}, "label is -1"),
        ("{{text}} ||| {{text | length}} {{ 1 / label }}", None, {}, "ZeroDivisionError"),
        ("{{text.split(label)}} ||| yes", None, {}, "TypeError"),
        ("{{text}} ||| {{ [] | choice }}", None, {}, "IndexError"),
        ("{{text.parts.first}} ||| yes", None, {}, "UndefinedError"),
        ("{{text}} ||| yes", None, {"text": "\ud800"}, "lone surrogate"),
    ],
)
def test_a_template_that_is_not_for_a_row_says_why(
    jinja: str, choices: str | None, row: dict[str, Any], reason: str
) -> None:
    made = render(Template("t", jinja, choices), {"text": "it", "label": 0} | row, id="r:0", task="t")
    assert isinstance(made, Nothing)
    assert re.search(reason, made.reason)


@pytest.mark.parametrize("jinja", ["{{ ''.__class__.__mro__ }} ||| x", "{% if %}"])
def test_unsafe_or_broken_templates_are_named(jinja: str) -> None:
    with pytest.raises(InputValueError, match="imdb, template 'odd'"):
        render(Template("odd", jinja, None), {"text": ""}, id="r:0", task="imdb")


def rendered(jinja: str, row: dict[str, Any], choices: str | None = None, **options: Any) -> Instance:
    made = render(Template("t", jinja, choices), row, **{"id": "r:0", "task": "t"} | options)
    assert isinstance(made, Instance), made
    return made


def test_choices_of_each_row() -> None:
    instance = rendered(
        "{{q}} ||| {{answer_choices[1]}}", {"q": "which?", "options": ["a", "b", "a"]}, "{{ options | join(' ||| ') }}"
    )
    assert (instance.references, instance.choices) == (("b",), ("a", "b"))


def test_several_answers() -> None:
    instance = rendered("{{q}} ||| {{ answers | join('|||') }}", {"q": "who?", "answers": ["Ann", "", "Bo", "Ann"]})
    assert instance.references == ("Ann", "Bo")


def test_separators_of_a_row_separate_nothing() -> None:
    row = {"q": "a ||| b", "options": ["x|||y", "z"]}
    instance = rendered("{{q}} ||| {{options[0]}}", row, "{{options[0]}} ||| {{options[1]}}")
    assert instance.instruction == "a ||| b"
    assert (instance.references, instance.choices) == (("x|||y",), ("x|||y", "z"))


def test_a_template_cannot_change_a_row() -> None:
    row = {"q": "?", "options": ["a"], "deep": {"more": []}}
    jinja = "{% set _ = options.append('b') %}{% set _ = deep.more.append(1) %}{{q}} ||| {{options | join(' ')}}"
    assert rendered(jinja, row).references == rendered(jinja, row).references == ("a b",)
    assert row == {"q": "?", "options": ["a"], "deep": {"more": []}}


def test_what_promptsource_adds_to_jinja() -> None:
    jinja = "{% for a, b in zip(x, y) %}{{a}}{{b}} {% endfor %} ||| {{ x | most_frequent | first }}"
    instance = rendered(jinja, {"x": [1, 2, 2], "y": "abc"})
    assert (instance.instruction, instance.references) == ("1a 2b 2c", ("2",))
    assert most_frequent([3, 1, 1, 3, 2]) == [3, 1]
    assert most_frequent([]) is None


@pytest.mark.parametrize("name", ["choice", "random"])
def test_draws_are_the_same_for_the_same_seed_and_row(name: str) -> None:
    jinja = f"{{{{q}}}} ||| {{{{ ['a', 'b', 'c', 'd'] | {name} }}}}"
    drawn = [rendered(jinja, {"q": "?"}, id=f"r:{row}", seed=seed).references for seed in (0, 1) for row in range(40)]
    again = [rendered(jinja, {"q": "?"}, id=f"r:{row}", seed=seed).references for seed in (0, 1) for row in range(40)]
    assert drawn == again
    assert set(drawn) == {("a",), ("b",), ("c",), ("d",)}
    assert drawn[:40] != drawn[40:]


def test_printed_values_are_cut() -> None:
    row = {"text": "word " * 100}
    assert len(rendered("Say: {{text}} ||| yes", row).instruction) == 504
    assert rendered("Say: {{text}} ||| yes", row, longest=20).instruction == "Say: word word word..."


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "folder", "folder of templates", "file"])
def test_collections(tmp_path: Path, kind: str) -> None:
    yaml = ROTTEN_TOMATOES
    path = tmp_path / f"all.{kind}"
    if kind in {"tar", "tar.gz"}:
        write_templates(path, {"some/one/rotten_tomatoes": yaml, "glue/mrpc": yaml})
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("main/templates/some/one/rotten_tomatoes/templates.yaml", yaml)
            zipped.writestr("main/templates/glue/mrpc/templates.yaml", yaml)
    elif kind == "file":
        path = tmp_path / "mine.yaml"
        path.write_text(yaml)
    else:
        top = path if kind == "folder" else path / "templates"
        for name in ("some/one/rotten_tomatoes", "glue/mrpc"):
            (top / name).mkdir(parents=True)
            (top / name / "templates.yaml").write_text(yaml)
    assert [template.name for template in read_templates(path, "glue", "mrpc")] == ["good or bad"]
    assert read_templates(path, "some/one/rotten_tomatoes") == read_templates(path, "glue", "mrpc")


@pytest.mark.parametrize(
    ("dataset", "subset", "advice"),
    [
        ("imbd", None, "such as imdb"),
        ("glue", None, "give one of its subsets: mrpc, qqp"),
        ("imdb", "plain", "imdb has no subsets"),
    ],
)
def test_unknown_data_sets_get_advice(tmp_path: Path, dataset: str, subset: str | None, advice: str) -> None:
    write_templates(tmp_path / "t.tar", dict.fromkeys(("imdb", "glue/mrpc", "glue/qqp"), ROTTEN_TOMATOES))
    with pytest.raises(InputValueError, match=advice):
        read_templates(tmp_path / "t.tar", dataset, subset)


@pytest.mark.parametrize(
    "yaml",
    [
        "templates: [",
        "templates: 3",
        "[]",
        "templates: {a: 1}",
        "templates: {a: {jinja: x}}",
        "templates: {a: {name: n, jinja: 3}}",
        "templates: {a: {name: n, jinja: '{% if %}'}}",
        "templates: {a: {name: n, jinja: '{{ x | no_such_filter }}'}}",
        "templates: !!python/object/apply:os.system [true]",
    ],
)
def test_broken_files_are_named(yaml: str) -> None:
    with pytest.raises(InputValueError, match=r"here\.yaml"):
        parse_templates(yaml.encode(), "here.yaml")


def test_errors_name_the_archive_and_the_data_set(tmp_path: Path) -> None:
    archive = tmp_path / "templates.tar.gz"
    with pytest.raises(InputValueError, match=r"templates\.tar\.gz: no such folder or archive"):
        read_templates(archive, "imdb")
    write_templates(archive, {"rotten_tomatoes": ROTTEN_TOMATOES})
    with pytest.raises(InputValueError, match=r"templates/imdb/templates\.yaml"):
        read_templates(archive, "imdb")
    write_templates(archive, {"imdb": "templates: ["})
    with pytest.raises(InputValueError, match="imdb"):
        read_templates(archive, "imdb")
    archive.write_bytes(b"nothing")
    with pytest.raises(InputValueError, match=r"templates\.tar\.gz can't be read"):
        read_templates(archive, "imdb")
    with pytest.raises(InputValueError, match="has no file"):
        read_templates(tmp_path, "imdb")


def test_task_names() -> None:
    assert task_name("glue", "mrpc") == "glue_mrpc"
    assert task_name("super_glue", "wsc.fixed") == "super_glue_wsc.fixed"
    assert task_name("some/one") == "some_one"
