from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cappy_lite.errors import InputValueError
from cappy_lite.rouge import rouge_l
from cappy_train.baselines import longest
from cappy_train.evaluate import (
    Question,
    bootstrap,
    candidate_questions,
    choice_questions,
    dev_figures,
    dev_questions,
    distance_closed,
    distractor_questions,
    estimate,
    majority_gains,
    oracle_gains,
    picked_gains,
    questions,
    random_gains,
    resampled_sums,
    sample_evenly,
    task_means,
)
from cappy_train.instances import Candidate, Instance

Pairs = list[tuple[str, tuple[str, ...]]]


def instance(
    id: str,
    *,
    instruction: str = "Say yes.",
    references: Sequence[str] = ("yes",),
    choices: Sequence[str] | None = None,
    task: str = "task",
    template: str | None = None,
    split: str = "test",
    candidates: Sequence[str] = (),
) -> Instance:
    listed = None if choices is None else tuple(choices)
    recorded = tuple(Candidate(text, f"source{number}") for number, text in enumerate(candidates))
    return Instance(id, task, template, instruction, tuple(references), recorded, listed, split)


def question(gains: Sequence[float], *, task: str = "t", template: str = "a", group: str = "g") -> Question:
    texts = tuple("x" * (length + 1) for length in range(len(gains)))
    return Question(task, template, "instruction", texts, np.array(gains, dtype=float), group, "choice")


def colours(count: int, *, split: str = "test", task: str = "colour") -> list[Instance]:
    """Instances whose inputs share words with their neighbours, every answer another one."""
    return [
        instance(
            f"{task}-{split}-{number}",
            instruction=f"Name the thing.\n\nInput: w{number} w{number + 1} w{number + 2}",
            references=[f"thing{number}", f"object{number} or thing{number}"],
            task=task,
            split=split,
        )
        for number in range(count)
    ]


def first_word_scores(pairs: Pairs) -> list[np.ndarray]:
    return [np.array([text.startswith("thing1") for text in candidates], dtype=float) for _, candidates in pairs]


# Questions


def test_choices_gain_one_where_they_are_references() -> None:
    with_choices = instance("a:1:ask_it", choices=["no", "yes", "maybe"], template="ask it")
    asked = choice_questions([with_choices, instance("open")])
    assert [(q.candidates, q.gains.tolist(), q.kind) for q in asked] == [(("no", "yes", "maybe"), [0, 1, 0], "choice")]


def test_renderings_of_one_example_are_one_group() -> None:
    rendered = [
        instance("copa:val:3:ask_it", template="ask it", choices=["yes"]),
        instance("copa:val:3:why_C1_or_C2", template="…why? C1 or C2", choices=["yes"]),
        instance("copa:val:4:ask_it", template="ask it", choices=["yes"]),
        instance("superni-7", choices=["yes"]),
    ]
    assert [q.group for q in choice_questions(rendered)] == ["copa:val:3", "copa:val:3", "copa:val:4", "superni-7"]


def test_distractors_are_similar_and_random_answers_of_other_instances() -> None:
    pool = colours(40)
    for asked, source in zip(distractor_questions(pool), sorted(pool, key=lambda one: one.id), strict=True):
        number = int(source.references[0].removeprefix("thing"))
        others = {int(text.removeprefix("thing")) for text in asked.candidates} - {number}
        assert len(asked.candidates) == len(others) + 1 == 8
        assert asked.instruction == source.instruction
        # Inputs share words up to two places away, the nearest most.
        assert {near for near in (number - 1, number + 1, number - 2, number + 2) if 0 <= near < 40} <= others


def test_gains_are_stemmed_rouge_l_over_all_references() -> None:
    pool = [
        instance("a", instruction="q one", references=["two running dogs", "a cat"]),
        instance("b", instruction="q two", references=["the cat runs"]),
    ]
    for asked, source in zip(distractor_questions(pool), pool, strict=True):
        expected = [rouge_l(text, source.references, stem=True).fmeasure for text in asked.candidates]
        assert asked.gains.tolist() == expected
        assert asked.gains[asked.candidates.index(source.references[0])] == 1.0
        assert max(asked.gains) > min(asked.gains) > 0 or source.id == "b"


def test_no_distractor_is_right() -> None:
    pool = [
        instance("a", instruction="q 1", references=["Paris", "the city"]),
        instance("b", instruction="q 2", references=["paris "]),
        instance("c", instruction="q 3", references=["The  City"]),
        instance("d", instruction="q 1", references=["another right answer"]),
        instance("e", instruction="q 4", references=["Rome"]),
        instance("f", instruction="q 5", references=["ROME"]),
    ]
    candidates = {q.group: sorted(text.lower() for text in q.candidates) for q in distractor_questions(pool)}
    assert candidates["a"] == ["paris", "rome"]


def test_questions_without_distractor_or_without_measurable_gold_are_left_out() -> None:
    alone = instance("alone", task="other")
    pool = [
        instance("a", instruction="q 1"),
        instance("b", instruction="q 2", references=["★★"]),
        instance("c", instruction="q 3", references=["no"]),
    ]
    assert [q.group for q in distractor_questions([alone, *pool])] == ["a", "c"]
    assert distractor_questions([alone]) == []


def test_tasks_and_templates_do_not_mix() -> None:
    pool = [*colours(9), *colours(9, task="shape")]
    pool += [
        instance(f"t{n}", instruction=f"q {n}", references=[f"r{n}"], task="colour", template="t") for n in range(9)
    ]
    for asked in distractor_questions(pool):
        start = "r" if asked.template else "thing"
        assert all(text.startswith(start) for text in asked.candidates)
        assert len(set(asked.candidates)) == 8


def test_candidates_depend_on_seed_and_ids_alone() -> None:
    pool = colours(30)
    shuffled = random.Random(1).sample(pool, len(pool))

    def candidates(instances: Sequence[Instance], seed: int) -> dict[str, tuple[str, ...]]:
        return {q.group: q.candidates for q in distractor_questions(instances, seed=seed)}

    assert candidates(pool, 0) == candidates(shuffled, 0)
    assert candidates(pool, 0) != candidates(pool, 1)


def test_candidates_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from cappy_train.evaluate import distractor_questions, sample_evenly\n"
        "from cappy_train.instances import Instance\n"
        "pool = [Instance(str(n), 't', None, f'q w{n} w{n + 1}', (f'r{n}',), (), None, 'test') for n in range(12)]\n"
        "print([q.candidates for q in sample_evenly(distractor_questions(pool), 5)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != b"[]\n"


def test_the_gold_stands_anywhere() -> None:
    places = [q.gains.argmax() for q in distractor_questions(colours(400))]
    counts = np.bincount(places, minlength=8)
    # 50 expected a place; five standard deviations either way.
    assert counts.min() > 16
    assert counts.max() < 84


def test_recorded_candidates_gain_their_best_stemmed_rouge_l() -> None:
    texts = ["a dog runs", "The Dogs  run", "", "a dog runs", "dogs"]
    recorded = instance("a", references=["the dogs run", "some running dogs"], candidates=texts, template="t")
    (asked,) = candidate_questions([recorded, instance("without")])
    assert asked.candidates == ("a dog runs", "The Dogs  run", "", "dogs")
    expected = [rouge_l(text, recorded.references, stem=True).fmeasure for text in asked.candidates]
    assert asked.gains.tolist() == expected
    assert expected[1] == 1 > expected[0] > expected[2] == 0
    assert asked.recorded == recorded.candidates
    assert (asked.task, asked.template, asked.group, asked.kind) == ("task", "t", "a", "generation")


def test_a_reference_in_another_script_gains_one() -> None:
    (asked,) = candidate_questions([instance("a", references=["Да, снег"], candidates=["да,  снег", "да", "+"])])
    assert asked.gains.tolist() == [1, 0, 0]


def test_candidates_of_instances_with_choices_gain_by_exact_match() -> None:
    texts = ["Not entailment", " ENTAILMENT ", "entailment it is"]
    choices = ["entailment", "not entailment"]
    (asked,) = candidate_questions([instance("a", references=["entailment"], choices=choices, candidates=texts)])
    assert asked.gains.tolist() == [0, 1, 0]


def test_questions_are_of_choices_else_of_candidates_else_of_distractors() -> None:
    both = instance("both", references=["yes"], choices=["yes", "no"], candidates=["yes"])
    recorded = instance("recorded", candidates=["yes", "no"])
    pool = colours(12)
    mixed = [pool[0], recorded, both, *pool[1:]]
    asked = questions(iter(mixed), seed=3)
    expected = [*choice_questions([both]), *candidate_questions([recorded]), *distractor_questions(pool, seed=3)]
    assert [(q.group, q.candidates, q.kind, q.recorded) for q in asked] == [
        (q.group, q.candidates, q.kind, q.recorded) for q in expected
    ]
    assert len(asked) == 14
    assert questions([]) == []


# Picks and baselines


def test_the_pick_is_the_best_score_and_the_first_of_equals() -> None:
    questions = [question([0.1, 0.2, 0.3]), question([0.4, 0.5]), question([0.6, 0.7, 0.8])]
    scores = [np.array([0, 2, 1]), [1, 1], np.array([0.0, 0.5, 0.5], dtype=np.float32)]
    assert picked_gains(questions, lambda _: scores).tolist() == [0.2, 0.4, 0.7]


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, 2.0, 3.0]], [[np.nan, 1.0]], [[np.inf, 1.0]], [], [[0, 1], [0, 1]]])
def test_scores_that_do_not_fit_are_refused(scores: list[list[float]]) -> None:
    with pytest.raises(InputValueError, match="score gave"):
        picked_gains([question([0, 1])], lambda _: scores)


def test_random_oracle_and_longest() -> None:
    questions = [question([0, 1, 0, 0]), question([0.5, 0.1])]
    assert random_gains(questions).tolist() == pytest.approx([0.25, 0.3])
    assert oracle_gains(questions).tolist() == [1, 0.5]
    assert picked_gains(questions, longest).tolist() == [0, 0.1]


def test_majority_is_the_place_that_is_right_most_often_in_its_template() -> None:
    questions = [
        question([0, 1], template="a"),
        question([0, 1], template="a"),
        question([1, 0], template="a"),
        question([1, 0], template="b"),
        *(question([0, 0, 1], template="c") for _ in range(3)),
        *(question([1, 0], template="c") for _ in range(2)),
        question([0, 1], template="c"),
    ]
    assert majority_gains(questions).tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 1, 0]


def test_distance_closed() -> None:
    assert distance_closed(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert distance_closed([0.1, 0.4], [0.2, 0.4], [0.7, 0.4]).tolist() == pytest.approx([-0.2, 0.0])


# Averages and intervals


def test_means_go_over_questions_then_templates_then_tasks() -> None:
    questions = [
        *(question([1], task="x", template="a") for _ in range(4)),
        question([1], task="x", template="b"),
        question([1], task="y", template="a"),
    ]
    means = task_means(questions, np.array([[1, 1, 0, 0, 0, 0.3], [1, 1, 1, 1, 1, 1]], dtype=float))
    assert means.tolist() == [[pytest.approx(0.25), pytest.approx(0.3)], [pytest.approx(1), pytest.approx(1)]]


def test_no_questions_are_refused() -> None:
    with pytest.raises(InputValueError, match="questions is empty"):
        task_means([], np.zeros(0))


def test_bootstrap_has_the_standard_error_of_a_mean() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((1, 300))
    samples = bootstrap([question([1], group=str(n)) for n in range(300)], values, resamples=4000).averages[:, 0]
    assert samples.mean() == pytest.approx(values.mean(), abs=0.001)
    assert samples.std() == pytest.approx(values.std() / np.sqrt(300), rel=0.05)


def test_bootstrap_draws_groups_not_questions() -> None:
    rng = np.random.default_rng(4)
    by_group = rng.random(100)
    # Ten renderings of an example that are always right together tell no more than one.
    questions = [question([1], group=str(n), template=str(t)) for n in range(100) for t in range(10)]
    samples = bootstrap(questions, np.repeat(by_group, 10)[None], resamples=4000).averages[:, 0]
    assert samples.std() == pytest.approx(by_group.std() / 10, rel=0.05)


def test_bootstrap_is_paired_seeded_and_within_tasks() -> None:
    rng = np.random.default_rng(5)
    questions = [question([1], task=str(n % 2), group=str(n)) for n in range(60)]
    gains = rng.random((1, 60)) + np.array([[0.0], [0.25]])
    samples = bootstrap(questions, gains, seed=1)
    assert samples.tasks.shape == (2000, 2, 2)
    assert np.allclose(samples.tasks[:, 1] - samples.tasks[:, 0], 0.25)
    assert np.allclose(samples.averages, samples.tasks.mean(axis=2))
    assert np.array_equal(samples.tasks, bootstrap(questions, gains, seed=1).tasks)
    assert not np.array_equal(samples.tasks, bootstrap(questions, gains, seed=2).tasks)
    constant = np.array([[0.2, 0.8] * 30])
    assert np.allclose(bootstrap(questions, constant).tasks, [0.2, 0.8])


def test_a_task_of_a_single_example_has_no_interval_but_averages_have() -> None:
    rng = np.random.default_rng(6)
    several = [question([1], task="several", group=str(n)) for n in range(4)]
    alone = [question([1], task="alone", template=template, group="x") for template in ("a", "b")]
    by_templates = [question([1], task="by templates", template=str(n), group=str(n)) for n in range(3)]
    questions = [*several, *alone, *by_templates]
    samples = bootstrap(questions, rng.random((2, len(questions))))
    unknown = np.isnan(samples.tasks).all(axis=(0, 1))
    assert unknown.tolist() == [True, False, False]
    assert not np.isnan(samples.tasks[..., ~unknown]).any()
    assert np.ptp(samples.tasks[..., ~unknown], axis=0).min() > 0
    assert estimate(np.array([0.25, *samples.tasks[:, 0, 0]])) == {"value": 0.25, "low": None, "high": None}
    assert None not in estimate(np.array([0.25, *samples.averages[:, 0]])).values()
    assert np.isnan(bootstrap(alone, rng.random((2, 2))).averages).all()
    assert np.isnan(resampled_sums(alone, rng.random((2, 2)))).all()
    closed = distance_closed([0.3, np.nan], [0.2, np.nan], [0.4, np.nan])
    assert closed == pytest.approx([0.5, np.nan], nan_ok=True)


def shares(values: np.ndarray) -> dict[float, float]:
    found, counts = np.unique(values.round(9), return_counts=True)
    return dict(zip(found.tolist(), (counts / len(values)).tolist(), strict=True))


def test_examples_alone_in_their_tasks_are_drawn_among_each_other() -> None:
    """Of gains 0 and 1 that are all of their tasks, and 2 and 4 of a third task: by hand."""
    questions = [question([1], task=task, group=task + str(n)) for n, task in enumerate(["x", "y", "z", "z"])]
    gains = np.array([[0.0, 1, 2, 4]])
    # Two draws of 0 and 1, and the mean of two draws of 2 and 4: sums of 0, 1, 2 and of 2, 3, 4.
    by_hand = {2 / 3: 1 / 16, 3 / 3: 4 / 16, 4 / 3: 6 / 16, 5 / 3: 4 / 16, 6 / 3: 1 / 16}
    found = shares(bootstrap(questions, gains, resamples=20_000).averages[:, 0])
    assert found == pytest.approx({round(value, 9): share for value, share in by_hand.items()}, abs=0.02)
    sums = {4: 1 / 16, 5: 2 / 16, 6: 3 / 16, 7: 4 / 16, 8: 3 / 16, 9: 2 / 16, 10: 1 / 16}
    assert shares(resampled_sums(questions, gains, resamples=20_000)[:, 0]) == pytest.approx(sums, abs=0.02)


def test_the_only_single_example_moves_as_a_draw_among_all_examples_does() -> None:
    """A gain of 3 that is all of its task, and 0 and 6 of another one: by hand."""
    questions = [question([1], task=task, group=str(n)) for n, task in enumerate("xyy")]
    gains = np.array([[3.0, 0, 6]])
    # x moves by a draw of 0, 3 and 6 less their mean, the mean of y by that of two draws of 0 and 6.
    moves = [
        (x, y, share / 3) for x, (y, share) in itertools.product((-3, 0, 3), {-3: 1 / 4, 0: 1 / 2, 3: 1 / 4}.items())
    ]
    averages, sums = defaultdict(float), defaultdict(float)
    for x, y, share in moves:
        averages[3 + (x + y) / 2] += share
        sums[9 + x + 2 * y] += share
    found = shares(bootstrap(questions, gains, resamples=20_000).averages[:, 0])
    assert found == pytest.approx(averages, abs=0.02)
    assert shares(resampled_sums(questions, gains, resamples=20_000)[:, 0]) == pytest.approx(sums, abs=0.02)


@pytest.mark.parametrize("sizes", [[1] * 40, [1] * 12 + [5] * 12, [1] + [8] * 6])
@pytest.mark.parametrize("spread_of_tasks", [0.0, 1.0])
def test_intervals_of_averages_hold_the_truth_as_often_as_they_say(sizes: list[int], spread_of_tasks: float) -> None:
    rng = np.random.default_rng(7)
    asked = [question([1], task=str(task), group=str(n)) for task, size in enumerate(sizes) for n in range(size)]
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    worth = rng.normal(scale=spread_of_tasks, size=len(sizes))
    hits = []
    for _ in range(250):
        # Of two methods the second is better by 0.5 in all tasks.
        gains = (worth + np.array([[0], [0.5]]))[:, tasks] + rng.normal(size=(2, len(tasks)))
        averages = bootstrap(asked, gains, resamples=300, seed=int(rng.integers(1 << 30))).averages
        figures = np.stack([averages[:, 0], averages[:, 1] - averages[:, 0]])
        low, high = np.percentile(figures, [2.5, 97.5], axis=1)
        hits.append((low <= [worth.mean(), 0.5]) & ([worth.mean(), 0.5] <= high))
    average, difference = np.mean(hits, axis=0)
    # Of 250: 0.05 is over three standard errors; few examples make intervals a little narrow.
    assert 0.88 < difference < 0.98
    # That tasks differ widens intervals of averages, and never narrows them.
    assert 0.88 < average < (1 if spread_of_tasks else 0.98)


# Development sets


def test_samples_are_even_nested_and_do_not_depend_on_order() -> None:
    questions = [question([1], task="big", group=str(n)) for n in range(50)]
    questions += [question([1], task="small", group=str(n)) for n in range(3)]
    sampled = sample_evenly(questions, 10)
    assert [q.task for q in sampled].count("small") == 3
    assert len(sampled) == len({(q.task, q.group) for q in sampled}) == 10
    assert sample_evenly(questions[::-1], 6) == sampled[:6]
    assert len(sample_evenly(questions, 99)) == 53


def write_dev_data(folder: Path) -> None:
    superni = [one for split in ("train", "dev") for one in colours(20, split=split)]
    choices = [
        instance(
            f"{task}_{form}:{n}", instruction=f"q {n}", choices=["no", "yes"], task=task, template=form, split=split
        )
        for task, form in [("sciq", "ask"), ("imdb", "ask"), ("qasc", "is_correct_2"), ("qasc", "combined_1")]
        for n, split in enumerate(["train", "dev", "dev"])
    ]
    generation = [
        instance(
            f"xsum:{n}",
            instruction=f"q {n}" + " long" * (900 * (n == 1)),
            references=[f"r{n}"],
            task="xsum",
            split="dev",
        )
        for n in range(12)
    ]
    for name, instances in {"superni_train": superni, "t0_train": choices + generation}.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in instances)


def test_dev_questions_are_of_the_dev_split_and_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dev_data(tmp_path)
    source = str(tmp_path / "*.jsonl.gz")
    asked = dev_questions(source)
    kinds = {kind: [q.group for q in asked if q.kind == kind] for kind in ("choice", "generation")}
    assert "qasc_combined_1:1" in kinds["choice"]
    assert sorted(group for group in kinds["generation"] if group.startswith("colour")) == sorted(
        f"colour-dev-{n}" for n in range(20)
    )
    monkeypatch.setattr("cappy_train.evaluate.DEV_QUESTIONS", 3)
    assert [q.group for q in dev_questions(source)] == [group for groups in kinds.values() for group in groups[:3]]


def test_a_file_without_dev_questions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(asdict(instance("a", split="train"))) + "\n")
    with pytest.raises(InputValueError, match="whose split is dev"):
        dev_questions(path)


def test_dev_figures_are_a_few_numbers(tmp_path: Path) -> None:
    write_dev_data(tmp_path)
    asked = dev_questions(str(tmp_path / "*.jsonl.gz"))

    def best(pairs: Pairs) -> list[np.ndarray]:
        gains = {(q.instruction, q.candidates): q.gains for q in asked}
        return [gains[pair] for pair in pairs]

    figures = dev_figures(asked, best)
    assert set(figures) == {
        "dev_gain",
        "choice_dev_accuracy",
        "choice_dev_random",
        "choice_dev_majority",
        "generation_dev_closed",
    }
    assert (figures["dev_gain"], figures["choice_dev_accuracy"], figures["generation_dev_closed"]) == (1, 1, 1)
    assert 0 < figures["choice_dev_random"] < 1
    assert dev_figures(asked, lambda pairs: [-scores for scores in best(pairs)])["generation_dev_closed"] < 0
