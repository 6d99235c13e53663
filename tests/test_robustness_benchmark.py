"""The benchmark of robustness: scorers with a known trick show it in its figure, and in no other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import robustness
from benchmarks.robustness import (
    CHANGES,
    COPY,
    EMPTY,
    GAIN_POOLED,
    GAIN_RANKS,
    INTRUDERS,
    LONGER,
    NOT_LONGER,
    PAIRS,
    PICKS,
    RANKS,
    REPEATED,
    RIGHT_LONGEST,
    SCORE_POOLED,
    SCORE_RANKS,
    UNRELATED,
    WRONG_LONGEST,
    Figure,
    draw_intruders,
    measure,
    plain,
    record,
    sentences_by_task,
    shown,
)
from cappy_train.baselines import longest
from cappy_train.evaluate import FloatArray, Question
from cappy_train.instances import Candidate, Instance, write_instances

LOST = "pairs in order, lost where the wrong one is longer"
UPPER, LOWER, INSTRUCTION, SPACE, STOPS_ON, STOPS_OFF, STOP_ON_ONE = CHANGES
SENTENCES = {"other": ["Rivers carry water to the sea", "The baker sold all of his bread"]}
TREES = ("Ash", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple", "Oak", "Pine")
SO = " or so"


def asked(count: int = 60) -> list[Question]:
    """Four candidates of four lengths each, any of them the right one; in every third question one has a full stop."""
    made = []
    for number in range(count):
        rng = random.Random(number)
        lengths = rng.sample(range(4), 4)
        texts = [f"{rng.choice(TREES)} {number}{place}{SO * long}" for place, long in enumerate(lengths)]
        if number % 3 == 0:
            texts[lengths.index(0)] += "."
        gains = np.zeros(4)
        gains[rng.randrange(4)] = 1
        made.append(Question("trees", None, f"Which Tree {number}", tuple(texts), gains, f"g{number}", "generation"))
    return made


def figures_of(trick: Callable[[str, str], float]) -> dict[str, Figure]:
    """Of a scorer that knows right answers (1) from wrong ones (0.5) and others (0), and adds what it likes.

    Answers are known but for case, spaces and full stops. trick: by instruction and text.
    """
    some = asked()
    known = {
        plain(text): 0.5 + gain / 2
        for question in some
        for text, gain in zip(question.candidates, question.gains.tolist(), strict=True)
    }

    def score(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
        return [
            np.array([known.get(plain(text), 0) + trick(instruction, text) for text in texts])
            for instruction, texts in pairs
        ]

    return {figure.name: figure for figure in measure(some, SENTENCES, score)}


def value(figure: Figure) -> float:
    return float(figure.samples[0])


# What a scorer likes, and the bars that it then breaks.
TRICKS: dict[str, tuple[Callable[[str, str], float], set[str]]] = {
    "nothing": (lambda instruction, text: 0, set()),
    "length": (lambda instruction, text: 0.3 * text.lower().count(SO), {LOST}),
    "full stops": (
        lambda instruction, text: 0.8 * (len(text) > 1 and text.strip().endswith(".")),
        {STOPS_ON, STOPS_OFF, STOP_ON_ONE},
    ),
    "upper case": (lambda instruction, text: 0.6 * (text.isupper() and text < "F"), {UPPER}),
    "lower case": (lambda instruction, text: 0.6 * (text.islower() and SO in text), {LOWER}),
    "outer space": (lambda instruction, text: 0.6 * (text[:1].isspace() and SO in text), {SPACE}),
    "instructions in lower case": (
        lambda instruction, text: 0.6 * (instruction.islower() and SO in text),
        {INSTRUCTION},
    ),
    "copies": (lambda instruction, text: 2.0 * (text == instruction), {COPY}),
    "the empty text": (lambda instruction, text: 2.0 * (text == ""), {EMPTY}),
    "a word that says none": (lambda instruction, text: 2.0 * (text == "N/A"), {EMPTY}),
    "repetition": (lambda instruction, text: 2.0 * (len(text.split()) > 2 and len(set(text.split())) == 1), {REPEATED}),
    "sentences": (lambda instruction, text: 2.0 * (text in SENTENCES["other"]), {UNRELATED}),
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_breaks_its_bar_and_no_other(name: str) -> None:
    trick, broken = TRICKS[name]
    with_bar = [figure for figure in figures_of(trick).values() if figure.at_most is not None]
    assert len(with_bar) == 12
    assert {figure.name for figure in with_bar if figure.at_most is None or value(figure) > figure.at_most} == broken


def test_figures_of_length_by_hand() -> None:
    """One question whose longest candidate is wrong, and one whose longest is right; the scorer likes length."""
    some = [
        Question("t", None, "one", ("aa", "bbbb", "c"), np.array([1.0, 0.2, 0]), "g1", "generation"),
        Question("t", None, "two", ("aa", "b"), np.array([1.0, 0]), "g2", "generation"),
    ]
    figures = {figure.name: figure for figure in measure(some, {}, longest)}
    expected = {
        PICKS: (2, 0.5),
        WRONG_LONGEST: (1, 0),
        RIGHT_LONGEST: (1, 1),
        PAIRS: (2, 0.75),
        LONGER: (1, 0),
        NOT_LONGER: (2, 1),
        LOST: (1, 0.75),
        SCORE_RANKS: (1, 1),
        GAIN_RANKS: (1, 0.5),
        f"{RANKS}: score less gain (bias)": (1, 0.5),
    }
    for name, (count, share) in expected.items():
        assert figures[name].questions == count, name
        assert value(figures[name]) == pytest.approx(share), name
    lengths, gains = [2, 4, 1, 2, 1], [1, 0.2, 0, 1, 0]
    for name, other in ((SCORE_POOLED, lengths), (GAIN_POOLED, gains)):
        assert value(figures[name]) == pytest.approx(np.corrcoef(np.log1p(lengths), other)[0, 1])
    assert figures[UNRELATED].questions == 0
    assert record(figures[UNRELATED])["value"] is None


def test_equal_scores_are_half_in_order_and_have_no_correlation() -> None:
    some = [Question("t", None, "one", ("aa", "bbbb", "c"), np.array([1.0, 0, 0]), "g", "choice")]
    figures = {
        figure.name: figure for figure in measure(some, {}, lambda pairs: [np.zeros(len(own)) for _, own in pairs])
    }
    assert value(figures[PAIRS]) == 0.5
    assert figures[SCORE_RANKS].questions == figures[GAIN_RANKS].questions == 0
    assert np.isnan(value(figures[SCORE_POOLED]))
    assert value(figures[PICKS]) == 1  # of equal scores the first is picked


def test_a_bias_is_the_difference_to_what_answers_are_worth() -> None:
    """Where right answers are long, a good scorer's scores go with length, and that is no bias."""
    some = [
        Question("t", None, f"{number}", ("a", "bb", "ccc"), np.array([0, 0.4, 1.0]), f"g{number}", "generation")
        for number in range(3)
    ]
    figures = {figure.name: figure for figure in measure(some, {}, longest)}
    assert value(figures[SCORE_RANKS]) == pytest.approx(1)
    assert value(figures[f"{RANKS}: score less gain (bias)"]) == pytest.approx(0)


def test_changes_that_change_nothing_do_not_count() -> None:
    some = [Question("t", None, "Add 1", ("2", "3"), np.array([1.0, 0]), "g", "choice")]
    counts = {figure.name: figure.questions for figure in measure(some, {}, longest)}
    assert [counts[name] for name in (UPPER, LOWER, STOPS_OFF)] == [0, 0, 0]
    assert [counts[name] for name in (INSTRUCTION, SPACE, STOPS_ON, STOP_ON_ONE)] == [1, 1, 1, 1]


def test_no_intruder_is_an_answer() -> None:
    question = Question("t", None, "None", ("none.", "n/a"), np.array([1.0, 0]), "g", "choice")
    drawn = draw_intruders(question, {"t": ["so it is here too"], "u": ["N/A"]}, random.Random(0))
    assert drawn[COPY].candidates == drawn[UNRELATED].candidates == ()
    assert drawn[EMPTY].candidates == ("", " ", ".", "-")
    assert set(drawn[REPEATED].candidates[0].split()) == {"None"}
    other = Question("v", None, "Say so.", ("yes", "no"), np.array([1.0, 0]), "g", "choice")
    drawn = draw_intruders(other, {"v": ["so it is here too"], "u": ["N/A"]}, random.Random(0))
    assert (drawn[COPY].candidates, drawn[UNRELATED].candidates) == (("Say so.",), ("N/A",))


def test_a_right_answer_must_be_beaten_and_not_a_wrong_one() -> None:
    some = [Question("t", None, "one", ("right", "also", "wrong"), np.array([1.0, 1, 0]), "g", "choice")]
    scores = {"right": 0.2, "also": 0.6, "wrong": 0.9, "": 0.6, ".": 0.1}

    def intruded(empty: float) -> float:
        known = scores | {"": empty}
        figures = measure(some, {}, lambda pairs: [np.array([known.get(text, 0) for text in own]) for _, own in pairs])
        return value({figure.name: figure for figure in figures}[EMPTY])

    assert (intruded(0.6), intruded(0.61)) == (0, 1)


def test_shares_are_in_per_cent_and_correlations_as_they_are() -> None:
    figures = [
        Figure("pairs", "share", 1200, np.array([0.04, 0.03, 0.05]), at_most=0.03),
        Figure("bias", "correlation", 7, np.array([0.25, *[-0.0001] * 5, *[0.5] * 95])),
        Figure("nothing", "share", 0, np.full(3, np.nan), at_most=0.03),
    ]
    assert shown([record(figure) for figure in figures]).splitlines()[2:] == [
        "| pairs | 1,200 | 4.0 [3.0, 5.0] | 3 | no |",
        "| bias | 7 | 0.250 [0.000, 0.500] |  |  |",
        "| nothing | 0 | n/a | 3 |  |",
    ]


def test_sentences_are_long_references_by_task() -> None:
    instances = [instance(number, "tasks"[number % 5], ("one two three four five", "short")) for number in range(3)]
    instances.append(instance(4, "t", ("six seven eight nine ten", "one two three four five")))
    expected = {letter: ["one two three four five"] for letter in "as"}
    expected["t"] = ["one two three four five", "six seven eight nine ten"]
    assert sentences_by_task(instances) == expected
    assert list(sentences_by_task(reversed(instances))) == ["a", "s", "t"]


def test_figures_do_not_depend_on_the_order_of_questions() -> None:
    some = asked(20)
    there, back = (
        [(figure.name, figure.questions, value(figure)) for figure in measure(list(order), SENTENCES, careless)]
        for order in (some, reversed(some))
    )
    assert [pytest.approx(one) for one in there] == back
    assert sum(0 < number < 1 for _, _, number in there) > 10


def careless(pairs: list[tuple[str, tuple[str, ...]]]) -> list[FloatArray]:
    """Scores that depend on every character, and mean nothing."""
    return [
        np.array([random.Random(f"{instruction}|{text}").random() for text in texts]) for instruction, texts in pairs
    ]


def instance(number: int, task: str, references: tuple[str, ...], choices: tuple[str, ...] | None = None) -> Instance:
    recorded = (Candidate("the cat runs", "model"),)
    return Instance(f"{task}{number}", task, None, f"Write {number}", references, recorded, choices, "dev")


def test_the_command_on_a_tiny_model(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("runs", "eats", "drives", "cooks", "skis", "is")
    instances = [
        *(
            instance(number, task, (f"the {task} {verb} down the street{'.' * (number % 2)}",))
            for task in ("dog", "cat")
            for number, verb in enumerate(verbs)
        ),
        *(instance(number, "yes-no", (("yes", "no")[number % 2],), ("yes", "no", "old")) for number in range(5)),
        instance(9, "yes-no", ("yes", "no"), ("yes", "no")),  # nothing is wrong
    ]
    data, output = tmp_path / "instances.jsonl", tmp_path / "report.json"
    write_instances(data, instances)
    arguments = ["--data", str(data), "--model", str(tiny_model), "--split", "dev", "--limit", "8"]
    assert robustness.main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    report = json.loads(output.read_text())
    kinds = {kind: (found["questions"], found["tasks"]) for kind, found in report["kinds"].items()}
    assert kinds == {"choice": (5, 1), "generation": (8, 2)}
    assert (report["data"], report["seed"], report["machine"]["numpy"]) == (["instances.jsonl"], 0, np.__version__)
    for found in report["kinds"].values():
        *with_bar, first_without = found["figures"][: len(CHANGES) + len(INTRUDERS) + 2]
        assert all(one["holds"] in (True, False) for one in with_bar if one["questions"])
        assert all(one["at_most"] for one in with_bar)
        assert first_without["at_most"] is None
        for one in found["figures"]:
            if one["value"] is not None and one["low"] is not None and one["unit"] == "share":
                assert one["low"] <= one["value"] <= one["high"]
    # The tokenizer lower-cases and splits at white space.
    unmoved = {one["name"]: one["value"] for one in report["kinds"]["generation"]["figures"]}
    assert [unmoved[name] for name in (UPPER, INSTRUCTION, SPACE)] == [0, 0, 0]
    assert "instances.jsonl, split dev: 8 questions of 2 tasks, a reference among distractors" in printed.out
    assert f"| {STOP_ON_ONE} | " in printed.out
    assert "tiny" in printed.err  # the progress bar


def test_the_command_needs_questions(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_instances(tmp_path / "one.jsonl", [instance(1, "t", ("yes",), ("yes", "no"))])
    arguments = ["--data", str(tmp_path / "one.jsonl"), "--model", str(tiny_model)]
    for extra, message in ((["--limit", "0"], "--limit is 0"), ([], "no instance of split 'test' makes a question")):
        with pytest.raises(SystemExit, match="2"):
            robustness.main([*arguments, *extra])
        assert message in capsys.readouterr().err
