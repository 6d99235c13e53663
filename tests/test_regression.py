"""Regression data: which instances, which responses, which labels."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from tiny_training import write_tiny_data

from cappy_train.instances import Instance
from cappy_train.neighbours import dice_similarity, normal, varying_parts
from cappy_train.regression import (
    MAX_RESPONSE_WORDS,
    MAX_RESPONSES,
    balanced,
    damage,
    examples,
    merged,
    rendered_rows,
    training_instances,
)

OPEN = Instance("o", "t", None, "say it", ("it",), (), None, "train")
CHOICE = replace(OPEN, references=("no",), choices=("no", "yes"))


def test_training_instances(tmp_path: Path) -> None:
    instances = training_instances(write_tiny_data(tmp_path), seed=0)
    tasks = Counter(instance.task for instance in instances)
    assert set(tasks) == {"put_together", "yes_no", "answer", "rotten_tomatoes", "trec"}
    assert all(instance.split == "train" for instance in instances)
    assert not any("NC" in (instance.licence or "") for instance in instances)
    assert instances == training_instances(tmp_path, seed=0)
    assert instances != training_instances(tmp_path, seed=1)


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


def test_labels_of_choices() -> None:
    many = tuple(f"choice {number}" for number in range(40))
    instance = replace(CHOICE, choices=many, references=(many[7],))
    (example,) = examples([instance], seed=0)
    assert len(example.responses) == len(set(example.responses)) == MAX_RESPONSES
    assert dict(zip(example.responses, example.labels, strict=True))[many[7]] == 1
    assert sum(example.labels) == 1


def test_labels_of_open_generation_are_stemmed_rouge_l(tmp_path: Path) -> None:
    instances = [instance for instance in training_instances(write_tiny_data(tmp_path), seed=0) if not instance.choices]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    by_instruction = {instance.instruction: instance for instance in instances}
    made = list(examples(instances, seed=0))
    assert len(made) == len(instances)
    for example in made:
        references = by_instruction[example.instruction].references
        right = {normal(text) for text in references}
        assert right & {normal(text) for text in example.responses}
        assert len({normal(text) for text in example.responses}) == len(example.responses) <= MAX_RESPONSES
        for response, label in zip(example.responses, example.labels, strict=True):
            if normal(response) in right:
                assert label == 1
            else:
                assert label == scorer.score_multi(references, response)["rougeL"].fmeasure
    labels = [label for example in made for label in example.labels]
    assert {0.0, 1.0} < set(labels)


def test_a_reference_without_a_rouge_word_is_right() -> None:
    (example,) = examples([replace(OPEN, references=("+",))], seed=0)
    assert dict(zip(example.responses, example.labels, strict=True))["+"] == 1


def test_long_responses_are_cut() -> None:
    long = replace(OPEN, references=(" ".join(f"w{number}" for number in range(500)),))
    (example,) = examples([long], seed=0)
    assert max(len(response.split()) for response in example.responses) == MAX_RESPONSE_WORDS
    assert max(example.labels) == 1


def test_the_same_seed_gives_the_same_examples(tmp_path: Path) -> None:
    instances = training_instances(write_tiny_data(tmp_path), seed=0)
    assert list(examples(instances, seed=3)) == list(examples(instances, seed=3))
    assert list(examples(instances, seed=3)) != list(examples(instances, seed=4))


@pytest.mark.parametrize("text", ["word", "two words", "a sentence of 7 words with 2 numbers", "12"])
def test_damage_changes_a_text(text: str) -> None:
    damaged = [damage(text, "something else entirely", random.Random(seed)) for seed in range(200)]
    assert sum(result != text for result in damaged) > 180
    assert all(result.strip() == result and result for result in damaged)


def test_damage_of_an_empty_text_is_the_other() -> None:
    assert damage(" ", "other", random.Random(0)) == "other"


def test_neighbours() -> None:
    assert varying_parts(["Say: one dog", "Say: one cat"]) == ["dog", "cat"]
    assert varying_parts(["same", "same"]) == ["same", "same"]
    similarity = dice_similarity(["a dog runs", "a dog eats", "snow"])
    assert similarity[0, 1] == pytest.approx(2 / 3)
    assert similarity[0, 2] == 0
