"""The default model's instances: what is taken, and what is left out."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import ROTTEN_TOMATOES, TREC, record, write_lines, write_templates, write_tiny_data

from cappy_lite.errors import InputValueError
from cappy_train import cli
from cappy_train.default_data import (
    GROUPS,
    HELD_OUT,
    at_most,
    balanced,
    default_instances,
    even_questions,
    merged,
    named,
    rendered_rows,
)
from cappy_train.instances import Instance, read_instances

OPEN = Instance("o", "t", None, "say it", ("it",), (), None, "train")
CHOICE = replace(OPEN, references=("no",), choices=("no", "yes"))


def test_default_instances(tmp_path: Path) -> None:
    instances, removed = default_instances(write_tiny_data(tmp_path), seed=0)
    assert not removed
    train = [instance for instance in instances if instance.split == "train"]
    tasks = Counter(instance.task for instance in train)
    assert set(tasks) == {"put_together", "yes_no", "answer", "rotten_tomatoes", "trec", "antonyms"}
    assert {instance.licence for instance in instances} == {"MIT", None}
    dev = [instance for instance in instances if instance.split == "dev"]
    assert {instance.task for instance in dev} == {"put_together", "yes_no", "answer"}
    assert len(dev) + len(train) == len(instances)
    assert instances == default_instances(tmp_path, seed=0)[0]
    assert instances != default_instances(tmp_path, seed=1)[0]


def test_what_may_not_be_trained_on_is_not_in_dev_either(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path)
    before, _ = default_instances(data, seed=0)
    with gzip.open(data / "superni_train.jsonl.gz", "at", encoding="utf-8") as file:
        for task, licence in (("hellaswag", "MIT"), ("put_together", "CC BY-NC 4.0"), ("allowed", "MIT")):
            more = record(task, task, "go on", "dev") | {"references": ["x"], "licence": licence}
            file.write(json.dumps(more) + "\n")
    after, _ = default_instances(data, seed=0)
    assert {instance.id for instance in after} - {instance.id for instance in before} == {"allowed"}


def test_dev_has_no_instruction_of_training(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path)
    before, _ = default_instances(data, seed=0)
    asked = next(one for one in before if one.split == "train" and one.task == "put_together")
    with gzip.open(data / "superni_train.jsonl.gz", "at", encoding="utf-8") as file:
        for id, instruction in (("asked", asked.instruction), ("unasked", "Put these together: fog, lamp")):
            file.write(json.dumps(record(id, "put_together", instruction, "dev") | {"references": ["x"]}) + "\n")
    after, _ = default_instances(data, seed=0)
    assert {one.id for one in after} - {one.id for one in before} == {"unasked"}


def test_rows_stand_in_for_what_t0_has_of_their_sets(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path)
    before, _ = default_instances(data, seed=0)
    with gzip.open(data / "t0_train.jsonl.gz", "at", encoding="utf-8") as file:
        one_sided = record("one-sided", "rotten_tomatoes", "Is this a good film? It is.", "train")
        file.write(json.dumps(one_sided | {"references": ["yes"], "choices": ["no", "yes"]}) + "\n")
    assert default_instances(data, seed=0)[0] == before


def test_near_duplicates_go_before_answers_are_balanced(tmp_path: Path) -> None:
    data = write_tiny_data(tmp_path)
    before, _ = default_instances(data, seed=0)
    noes = [instance for instance in before if instance.task == "yes_no" and instance.references == ("no",)][:12]
    write_lines(
        data / "t0_heldout.jsonl.gz",
        [record(f"h{at}", "h", no.instruction, "train") | {"references": ["x"]} for at, no in enumerate(noes)],
    )
    after, removed = default_instances(data, seed=0)
    assert removed == {"t0_heldout": 12}
    assert not {no.id for no in noes} & {instance.id for instance in after}
    answers = Counter(i.references[0] for i in after if i.task == "yes_no" and i.split == "train")
    assert answers["no"] == 12
    assert answers["yes"] == 24


def test_dev_has_no_one_sided_sets_and_no_long_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_data(tmp_path)
    monkeypatch.setattr("cappy_train.default_data.ONE_SIDED", frozenset({"yes_no"}))
    monkeypatch.setattr("cappy_train.default_data.DEV_INSTRUCTION_CHARACTERS", 35)
    dev = [instance for instance in default_instances(tmp_path, seed=0)[0] if instance.split == "dev"]
    assert {instance.task for instance in dev} == {"put_together", "answer"}
    assert max(len(instance.instruction) for instance in dev) <= 35


@pytest.mark.parametrize(
    "task",
    [
        "task1344_glue_entailment_classification",
        "xlwic_true_or_false",
        "cause_and_effect",
        "task647_answer_generation",
        "task105_story_cloze-rocstories_sentence_generation",
        "task216_rocstories_correct_answer_generation",
    ],
)
def test_held_out_tasks(task: str) -> None:
    assert HELD_OUT.search(task)
    assert not HELD_OUT.search("task219_rocstories_title_answer_generation")


def test_at_most_so_many_of_a_task() -> None:
    many = [replace(OPEN, id=str(number), task=("big", "whole", "small")[number % 3]) for number in range(20)]
    many = [one for one in many if one.task != "small" or one.id == "2"]
    kept = at_most(5, many, whole={"whole"}, seed=0)
    assert Counter(instance.task for instance in kept) == {"big": 5, "whole": 7, "small": 1}
    assert kept == at_most(5, many, whole={"whole"}, seed=0)


def test_rows_are_drawn_with_equal_numbers_of_each_label(tmp_path: Path) -> None:
    instances = rendered_rows(write_tiny_data(tmp_path), "rotten_tomatoes", 10, seed=0)
    assert Counter(instance.references for instance in instances) == {("good",): 5, ("bad",): 5}


def test_equal_instructions_are_one_instance_with_all_references() -> None:
    instances = merged([OPEN, replace(OPEN, references=("that", "it")), replace(OPEN, instruction="other")])
    assert [instance.references for instance in instances] == [("it", "that"), ("it",)]


def test_choices_are_right_about_as_often() -> None:
    skewed = [CHOICE] * 5 + [replace(CHOICE, references=("yes",))] * 90
    assert Counter(instance.references for instance in balanced(skewed, seed=0)) == {("no",): 5, ("yes",): 10}
    assert balanced([CHOICE] * 5, seed=0) == []
    own_choices = [CHOICE, replace(CHOICE, choices=("no", "maybe"))]
    assert balanced(own_choices, seed=0) == own_choices
    assert balanced([OPEN] * 9, seed=0) == [OPEN] * 9


AG_NEWS = ROTTEN_TOMATOES.replace("rotten_tomatoes", "ag_news").replace("bad ||| good", "World ||| Sports")


def write_tiny_groups(folder: Path) -> Path:
    """The tiny data, with tasks of every group, of many labels and of one, and a template that is in a group."""
    data = write_tiny_data(folder)
    t0 = [
        record(f"{task}{number}", task, f"{task}: what of number {number}", "dev" if number % 5 == 4 else "train")
        | {"references": [label], "choices": ["no", "yes"], "template": template}
        for task, template, labels in (
            ("ag_news", "ask", ("no", "yes")),
            ("amazon_polarity", "ask", ("no", "yes", "yes")),
            ("imdb", "ask", ("no",)),
            ("glue_qqp", "ask", ("no", "yes")),
            ("wiqa", "does_the_supposed_perturbation_have_an_effect", ("no", "yes")),
            ("wiqa", "other", ("no", "yes")),
        )
        for number, label in enumerate(labels * (30 // len(labels)), 100 if template == "other" else 0)
    ]
    t0 += [record(f"o{at}", "put_together", f"put it together {at}", "train") | {"references": ["x"]} for at in "ab"]
    write_lines(data / "t0_train.jsonl.gz", t0)
    superni = [
        record(f"{task}{at}", task, f"{task}: say {at}", split) | {"references": [f"word {at}"]}
        for task in ("task1289_trec_classification", "task613_politifact_text_generation", "task080_piqa")
        for at, split in enumerate(("train", "train", "dev"))
    ]
    write_lines(data / "superni_train.jsonl.gz", superni)
    rows = [{"text": f"the news {number}", "label": number % 2} for number in range(20)]
    write_lines(data / "rows_ag_news.jsonl.gz", rows)
    templates = {"rotten_tomatoes": ROTTEN_TOMATOES, "trec": TREC, "ag_news": AG_NEWS}
    write_templates(data / "promptsource_templates.tar.gz", templates)
    return data


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("sentiment", {"amazon_polarity": 20, "rotten_tomatoes": 20}),
        ("topic", {"ag_news": 20}),
        ("intent", {"trec": 10}),
        ("yes-no", {"glue_qqp": 30}),
        ("sets", {"ag_news": 20, "rotten_tomatoes": 20, "trec": 10}),
    ],
)
def test_of_a_group_held_out_nothing_is_trained_on_and_questions_are_dev(
    tmp_path: Path, name: str, asked: dict[str, int]
) -> None:
    data = write_tiny_groups(tmp_path)
    usual, _ = default_instances(data, seed=0)
    instances, _ = default_instances(data, seed=0, hold_out=name)
    train = [instance for instance in instances if instance.split == "train"]
    others = [one for one in usual if one.split == "train" and not named(one, GROUPS[name])]
    assert train == others
    assert len(others) < sum(one.split == "train" for one in usual)
    dev = instances[len(train) :]
    assert {instance.split for instance in dev} == {"dev"}
    assert Counter(instance.task for instance in dev) == asked
    right = Counter((instance.task, instance.references[0]) for instance in dev)
    assert all(right[task, answer] == asked[task] / 2 for task, answer in right)
    assert len({instance.id for instance in instances}) == len(instances)
    assert instances == default_instances(data, seed=0, hold_out=name)[0]


def test_topics_of_ag_news_are_never_trained_on_though_its_labels_are_even(tmp_path: Path) -> None:
    instances, _ = default_instances(write_tiny_groups(tmp_path), seed=0)
    assert {instance.task for instance in instances} >= {"amazon_polarity", "glue_qqp", "trec"}
    assert not any(instance.task == "ag_news" for instance in instances)


def test_questions_are_even_over_templates_and_answers() -> None:
    asked = [
        replace(CHOICE, id=f"{template}{at}", template=template, instruction=f"{template} {at}", references=(answer,))
        for template, rights in (("a", ["no"] * 40 + ["yes"] * 5), ("b", ["no"] * 30 + ["yes"] * 30), ("c", ["no"] * 9))
        for at, answer in enumerate(rights)
    ]
    drawn = even_questions([*asked, *asked, OPEN], 40, seed=0)
    counts = Counter((instance.template, instance.references[0]) for instance in drawn)
    assert counts == {("a", "no"): 5, ("a", "yes"): 5, ("b", "no"): 10, ("b", "yes"): 10}
    assert len({instance.id for instance in drawn}) == len(drawn)
    assert drawn != even_questions(asked, 40, seed=1)


@pytest.mark.parametrize(
    "name", ["rows_trec.jsonl.gz", "promptsource_templates.tar.gz", "t0_train.jsonl.gz", "bbh_candidates.jsonl.gz"]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    data = write_tiny_data(tmp_path / "data")
    (data / name).unlink()
    with pytest.raises(InputValueError, match=name.replace(".", r"\.")):
        default_instances(data, seed=0)


def test_the_file_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_data(tmp_path / "data")
    known = record("known", "t", default_instances(data, seed=0)[0][0].instruction, "test") | {"references": ["x"]}
    write_lines(data / "bbh_candidates.jsonl.gz", [known])
    out = tmp_path / "default.jsonl.gz"
    assert cli.main(["distractors", "--default-data", str(data), "--out", str(out)]) == 0
    written = list(read_instances(out))
    told = capsys.readouterr().err
    assert f"{len(written)} instances; left out as near-duplicates of test items: 1\n  of bbh_candidates: 1\n" in told
    questions = [instance for instance in written if instance.template == "verification"]
    assert questions
    chosen, _ = default_instances(data, seed=0)
    assert [replace(instance, candidates=()) for instance in written if instance not in questions] == chosen
    assert all(bool(instance.candidates) <= (instance.split == "train") for instance in written)
    assert sum(bool(instance.candidates) for instance in written) > len(written) / 2


def test_a_group_is_held_out_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tiny_groups(tmp_path / "data")
    outs = [tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"]
    for out in outs:
        command = ["distractors", "--default-data", str(data), "--hold-out", "sentiment", "--out", str(out)]
        assert cli.main(command) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    written = list(read_instances(outs[0]))
    assert not any(named(one, GROUPS["sentiment"]) for one in written if one.split == "train")
    dev = [instance for instance in written if instance.split == "dev"]
    assert dev == [one for one in default_instances(data, seed=0, hold_out="sentiment")[0] if one.split == "dev"]
    bad = tmp_path / "bad.jsonl.gz"
    capsys.readouterr()
    assert cli.main(["distractors", "--default-data", str(data), "--hold-out", "mood", "--out", str(bad)]) == 1
    assert "'mood'" in (told := capsys.readouterr().err)
    assert "sentiment, topic, intent, yes-no" in told
    assert cli.main(["distractors", "--data", str(outs[0]), "--hold-out", "topic", "--out", str(bad)]) == 1
    assert "--default-data" in capsys.readouterr().err
    assert not bad.exists()
