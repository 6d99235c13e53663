"""PromptSource templates to instances."""

from pathlib import Path

import pytest
from tiny_training import ROTTEN_TOMATOES, write_templates

from cappy_lite.errors import InputValueError
from cappy_train.templates import Template, read_templates, render


def test_reads_and_renders(tmp_path: Path) -> None:
    write_templates(tmp_path / "templates.tar.gz", {"rotten_tomatoes": ROTTEN_TOMATOES})
    (template,) = read_templates(tmp_path / "templates.tar.gz", "rotten_tomatoes")
    instance = render(template, {"text": "a dull thing .", "label": 0}, id="r:0", task="rotten_tomatoes")
    assert instance is not None
    assert instance.instruction == "a dull thing . Is the film good or bad?"
    assert instance.references == ("bad",)
    assert instance.choices == ("bad", "good")
    assert (instance.template, instance.split) == ("good or bad", "train")


@pytest.mark.parametrize(
    ("jinja", "choices"),
    [
        ("{% if label == 1 %}{{text}} ||| yes{% endif %}", None),
        ("{{text}}", None),
        ("{{text}} ||| {{answer_choices[missing]}}", "no ||| yes"),
        ("{{text}} ||| maybe", "no ||| yes"),
    ],
    ids=["condition not met", "no answer", "field missing", "answer not among the choices"],
)
def test_a_template_that_does_not_apply_gives_none(jinja: str, choices: str | None) -> None:
    assert render(Template("t", jinja, choices), {"text": "it", "label": 0}, id="r:0", task="t") is None


@pytest.mark.parametrize("jinja", ["{{ ''.__class__.__mro__ }} ||| x", "{% if %}"])
def test_unsafe_or_broken_templates_are_named(jinja: str) -> None:
    with pytest.raises(InputValueError, match="imdb, template 'odd'"):
        render(Template("odd", jinja, None), {"text": ""}, id="r:0", task="imdb")


def test_errors_name_the_archive_and_the_data_set(tmp_path: Path) -> None:
    archive = tmp_path / "templates.tar.gz"
    with pytest.raises(InputValueError, match=r"templates\.tar\.gz: can't read templates/imdb"):
        read_templates(archive, "imdb")
    write_templates(archive, {"rotten_tomatoes": ROTTEN_TOMATOES})
    with pytest.raises(InputValueError, match=r"templates/imdb/templates\.yaml"):
        read_templates(archive, "imdb")
    write_templates(archive, {"imdb": "templates: ["})
    with pytest.raises(InputValueError, match="imdb"):
        read_templates(archive, "imdb")
