"""Candidates without a language model: where they come from, and what annotate makes of them."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from cappy_lite.errors import InputValueError
from cappy_train import cli, distractors
from cappy_train.annotate import annotate
from cappy_train.distractors import COPIED_WORDS, EMPTY_LOOKING, damage, with_distractors
from cappy_train.instances import Candidate, Instance, read_instances, write_instances
from cappy_train.neighbours import dice_similarity, normal, varying_parts

OPEN = Instance("o", "t", None, "say it", ("it",), (), None, "train")
CHOICE = replace(OPEN, references=("no",), choices=("no", "yes"))
ANIMALS = ("dog", "cat", "horse", "bird")


def open_ended(count: int) -> list[Instance]:
    return [
        replace(
            OPEN,
            id=f"o{number}",
            instruction=f"What does the {ANIMALS[number % 4]} number {number} do in the street at night?",
            references=(f"The {ANIMALS[number % 4]} runs {number} times.",),
        )
        for number in range(count)
    ]


def by_source(instances: list[Instance]) -> dict[str, list[tuple[Instance, str]]]:
    found: dict[str, list[tuple[Instance, str]]] = {}
    for instance in instances:
        for candidate in instance.candidates:
            found.setdefault(candidate.source, []).append((instance, candidate.text))
    return found


def test_each_source_gives_what_it_says() -> None:
    pool = open_ended(200)
    references = {reference for instance in pool for reference in instance.references}
    made = list(with_distractors(pool, seed=0))
    assert [replace(instance, candidates=()) for instance in made] == pool
    found = by_source(made)
    assert set(found) == {"neighbour", "task", "span", "damaged", "probe"}
    assert all(text in references for _, text in found["neighbour"] + found["task"])
    like = [instance.instruction.split()[3] in text for instance, text in found["neighbour"]]
    others = [instance.instruction.split()[3] in text for instance, text in found["task"]]
    assert sum(like) / len(like) > sum(others) / len(others) + 0.3
    assert all(text in instance.instruction for instance, text in found["span"])
    assert all(text not in instance.references for instance, text in found["damaged"])
    copies = [text for instance, text in found["probe"] if text == instance.instruction]
    empty = [text for _, text in found["probe"] if text in EMPTY_LOOKING]
    repeated = [text for _, text in found["probe"] if text and len(set(text.split())) == 1]
    assert min(len(copies), len(empty), len(repeated)) > 5


def test_candidates_are_distinct_and_new() -> None:
    recorded = Candidate("The dog sleeps.", "gpt")
    for instance in with_distractors([replace(one, candidates=(recorded,)) for one in open_ended(100)], seed=0):
        assert instance.candidates[0] == recorded
        texts = [normal(text) for text in instance.references] + [normal(one.text) for one in instance.candidates]
        assert len(texts) == len(set(texts))


def test_choices_get_a_random_answer_now_and_then_and_probes() -> None:
    choices = [replace(CHOICE, id=f"c{number}") for number in range(200)]
    made = list(with_distractors([*open_ended(20), *choices], seed=0))[20:]
    found = by_source(made)
    assert set(found) == {"random", "probe"}
    assert 50 < len(found["random"]) < 110
    alone = by_source(list(with_distractors(choices, seed=0)))
    assert set(alone) == {"probe"}


def test_answers_to_the_same_instruction_are_no_distractors() -> None:
    same = [replace(OPEN, id=str(number), references=(f"answer {number}",)) for number in range(30)]
    assert not {"neighbour", "task"} & set(by_source(list(with_distractors(same, seed=0))))


def test_other_splits_pass_as_they_are_and_give_nothing() -> None:
    dev = [replace(one, id=f"d{one.id}", split="dev", references=("secret",)) for one in open_ended(20)]
    made = list(with_distractors([*dev, *open_ended(20)], seed=0))
    assert made[:20] == dev
    assert not any("secret" in text for found in by_source(made).values() for _, text in found)


def test_a_copied_instruction_is_not_endless() -> None:
    long = [replace(one, instruction=f"{one.instruction} word" * 300) for one in open_ended(60)]
    probes = by_source(list(with_distractors(long, seed=0)))["probe"]
    assert max(len(text.split()) for _, text in probes) <= COPIED_WORDS


def test_the_seed_and_the_block_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = open_ended(40)
    assert list(with_distractors(pool, seed=3)) == list(with_distractors(pool, seed=3))
    assert list(with_distractors(pool, seed=3)) != list(with_distractors(pool, seed=4))
    monkeypatch.setattr(distractors, "BLOCK_INSTANCES", 20)
    assert list(with_distractors(pool, seed=3))[20:] == list(with_distractors(pool[20:], seed=3))
    monkeypatch.setattr(distractors, "POOL_INSTANCES", 10)
    texts = {text for _, text in by_source(list(with_distractors(pool, seed=3))[:10])["neighbour"]}
    assert texts <= {instance.references[0] for instance in pool[:10]}


def test_annotate_labels_them(tmp_path: Path) -> None:
    pool = [*open_ended(60), *(replace(CHOICE, id=f"c{number}") for number in range(60))]
    write_instances(tmp_path / "in.jsonl", pool)
    out = tmp_path / "out.parquet"
    assert cli.main(["distractors", "--data", str(tmp_path / "in.jsonl"), "--out", str(out), "--seed", "5"]) == 0
    assert list(read_instances(out)) == list(with_distractors(pool, seed=5))
    shards = annotate([out], tmp_path / "pairs", threads=1)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    references = {instance.id: instance.references for instance in pool}
    labels: dict[str, Counter[float]] = {}
    for row in (row for group in shards.row_groups() for row in shards.read(group).to_pylist()):
        labels.setdefault(row["source"], Counter())[row["score"]] += 1
        if row["source"] in ("neighbour", "task", "span", "damaged"):
            exact = scorer.score_multi(references[row["instance_id"]], row["response"])["rougeL"].fmeasure
            assert row["score"] == pytest.approx(exact)
    assert labels["neighbour"].keys() & {1.0} == set()
    assert len(labels["damaged"]) > 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputValueError, match="no such file"):
        distractors.write_distractors(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())
    write_instances(tmp_path / "in.jsonl", [OPEN])
    with pytest.raises(InputValueError, match="is one of the inputs"):
        distractors.write_distractors(tmp_path / "in.jsonl", tmp_path / "in.jsonl")


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
