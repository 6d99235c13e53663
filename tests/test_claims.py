"""Questions about claims that texts bear out, deny, or leave open."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from cappy_train import claims
from cappy_train.claims import MOST_OF_A_TASK, REPORTS, WORDINGS, negated, shortenings, with_claims, with_other_fact
from cappy_train.instances import Instance

BEGINNING = "Say in short what the text says."
CITIES = ("Paris", "Lima", "Oslo", "Quito")
OTHERS = ("Bergen", "Turin", "Porto")
FIRST = ("Soon", "Later", "Then", "Once")


def text(number: int) -> str:
    city, other = CITIES[number % 4], OTHERS[number % 3]
    return (
        f"{FIRST[number % 4]} in {1000 + number} the people of {city} were happy with the new bridge number {number}. "
        f"They had seen one in {other} that was {7 + number} years old by then. It rained."
    )


INSTANCES = [
    Instance(
        id=f"i{number}",
        task="bridges",
        template="ask",
        instruction=f"{BEGINNING}\n{text(number)}",
        references=(f"People of {CITIES[number % 4]} were happy with bridge number {number}.",),
        candidates=(),
        choices=None,
        split="train",
    )
    for number in range(400)
]


@pytest.fixture
def whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are whole sentences, and nobody in a text says what they make of one."""
    monkeypatch.setattr(claims, "SHORTENED", 0.0)
    monkeypatch.setattr(claims, "REPORTED", 0.0)


def made(instances: list[Instance], seed: int = 0) -> list[Instance]:
    return [one for one in with_claims(instances, seed=seed) if one.template == "claim"]


def parts(question: Instance) -> tuple[str, str, tuple[str, ...]]:
    """A question's text and claim, and the answers by SAYS, DENIES and OPEN."""
    for wording, *answers in WORDINGS:
        pieces = wording.replace("{claim}", "{text}").split("{text}")
        first, last = len(pieces[0]), len(question.instruction) - len(pieces[2])
        inner = question.instruction[first:last]
        if question.instruction == pieces[0] + inner + pieces[2] and inner.count(pieces[1]) == 1:
            shown = inner.split(pieces[1])
            return (*(shown if wording.index("{text}") < wording.index("{claim}") else shown[::-1]), tuple(answers))
    raise AssertionError(question.instruction)


def facts(sentence: str) -> set[str]:
    """Its names, its numbers with the words before them, and whether it denies: all that makes two sentences differ."""
    words = [word.strip(".,") for word in sentence.split()]
    names = {word for word in words if word in CITIES + OTHERS}
    numbers = {f"{before} {word}" for before, word in pairwise(words) if word.isdigit()}
    return names | numbers | ({"not"} & set(words))


def is_said(claim: str, shown: str) -> bool:
    """Whether one sentence of the text has the facts of the claim, and denies or not as the claim does."""
    said = [facts(sentence) for sentence in shown.split(". ")]
    return any(facts(claim) <= own and ("not" in facts(claim)) == ("not" in own) for own in said)


@pytest.mark.usefixtures("whole_sentences")
def test_the_answer_is_what_the_text_says_of_the_claim() -> None:
    questions = made(INSTANCES)
    assert 100 < len(questions) <= MOST_OF_A_TASK
    answers = Counter()
    for question in questions:
        shown, claim, answers_of_wording = parts(question)
        assert BEGINNING not in question.instruction
        assert question.choices == tuple(dict.fromkeys(answers_of_wording))
        (answer,) = question.references
        says, denies, left_open = answers_of_wording
        assert (answer == says) == is_said(claim, shown), question.instruction
        if denies != left_open:
            answers["says" if answer == says else "denies" if answer == denies else "open"] += 1
            own = CITIES[int(question.id.removeprefix("i").removesuffix(":claim")) % 4]
            assert answer != denies or own in shown + claim
    assert min(answers.values()) > 0.15 * sum(answers.values())


@pytest.mark.usefixtures("whole_sentences")
def test_neither_text_nor_claim_tells_the_answer_of_a_repeated_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RETELLINGS", 0.0)
    original = {sentence for number in range(400) for sentence in text(number).split(". ")}
    seen = Counter()
    for question in made(INSTANCES):
        _, claim, (says, denies, left_open) = parts(question)
        if question.references[0] == says or (denies != left_open and question.references[0] == denies):
            seen[question.references[0] == says, claim.removesuffix(".") in original] += 1
    assert min(seen[case] for case in ((True, True), (True, False), (False, True), (False, False))) > 5


@pytest.mark.usefixtures("whole_sentences")
def test_a_changed_fact_does_not_tell_that_something_is_said_or_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RETELLINGS", 0.0)
    originals = {text(number) for number in range(400)}
    sentences = {sentence.rstrip(".") for original in originals for sentence in original.split(". ")}
    seen = Counter()
    for question in made(INSTANCES):
        shown, claim, (says, denies, left_open) = parts(question)
        if denies != left_open:
            answer = question.references[0]
            seen["open" if answer == left_open else "told", "text", shown in originals] += 1
            seen["open" if answer == left_open else "told", "claim", claim.rstrip(".") in sentences] += 1
            assert answer in (says, denies, left_open)
    for kind in ("open", "told"):
        for part in ("text", "claim"):
            assert 0.2 < seen[kind, part, True] / (seen[kind, part, True] + seen[kind, part, False]) < 0.8


def test_the_instances_stay_and_questions_follow_from_the_seed() -> None:
    out = list(with_claims(INSTANCES, seed=0))
    assert [one for one in out if one.template != "claim"] == INSTANCES
    assert made(INSTANCES) == made(INSTANCES)
    assert made(INSTANCES) != made(INSTANCES, seed=1)


def test_other_splits_long_texts_and_equal_ones_are_passed_over() -> None:
    assert made([replace(one, split="dev") for one in INSTANCES]) == []
    assert made([replace(one, instruction=one.instruction + " Yes, it is so." * 40) for one in INSTANCES]) == []
    again = [replace(one, id=f"{one.id} again", template="other") for one in INSTANCES]
    assert {one.id for one in made([*INSTANCES, *again])} <= {f"{one.id}:claim" for one in INSTANCES}


def test_an_answer_that_the_task_wants_wrong_is_no_retelling() -> None:
    wrong = [replace(one, task="incorrect_summary") for one in INSTANCES]
    assert any(parts(question)[1].startswith("People") for question in made(INSTANCES))
    assert not any(parts(question)[1].startswith("People") for question in made(wrong))


@pytest.mark.parametrize(
    ("claim", "shown", "changed"),
    [
        ("It was 12 of them", "12 came and 15 went", "It was 15 of them"),
        ("she saw Anna go", "Anna was seen, and then Bob was", "she saw Bob go"),
        ("she saw Anna go", "Anna was seen", None),
        ("Bread is good", "Bread is good, and Wine", None),
        ("It fell 4.5% that day", "It fell 4.5% that day, 30% in all.", "It fell 30% that day"),
        # The text says that too.
        ("It was 12", "It was 12. It was 15.", None),
    ],
)
def test_a_fact_is_changed_to_another_one_of_the_text(claim: str, shown: str, changed: str | None) -> None:
    assert with_other_fact(claim, shown, random.Random(0)) == changed


@pytest.mark.parametrize(
    ("sentence", "other"),
    [
        ("It was late and was dark.", "It was not late and was dark."),
        ("It was not late and is dark.", "It was late and is dark."),
        ("They came late.", None),
        ("I can't wait.", None),
        ("I can't say that it was late.", "I can't say that it was not late."),
    ],
)
def test_a_sentence_is_negated_or_not_any_more(sentence: str, other: str | None) -> None:
    assert negated(sentence) == other


@pytest.mark.parametrize(
    ("sentence", "claims_made"),
    [
        ("The bridge (a wooden one) was built in a year.", ["The bridge was built in a year."]),
        ("Anna Lee, the mayor of Lima, was there in time.", ["Anna Lee was there in time."]),
        ("In the spring of 1912, the bridge was built anew.", ["The bridge was built anew."]),
        ("They built the new bridge because it rained a lot.", ["They built the new bridge."]),
        ("he was seen at home , and she went out late .", ["he was seen at home ."]),
        # A list says less without one of its parts, and what remains here is no sentence.
        ("They saw apples, pears, and plums in the market.", []),
        ("She went home because it rained a lot.", []),
    ],
)
def test_a_part_of_a_sentence_is_left_out(sentence: str, claims_made: list[str]) -> None:
    assert shortenings(sentence) == claims_made


def test_a_change_may_leave_nothing_to_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SHORTENED", 1.0)
    sentence = "The woman with number {number} met the old man who is {name}."
    assert shortenings(sentence.format(number=7, name="Bartholomew")) != []
    assert shortenings(sentence.format(number=7, name="Al")) == []
    shown = [f"{sentence.format(number=n, name='Bartholomew')} It was Al, they say." for n in range(len(INSTANCES))]
    instances = [
        replace(one, instruction=f"{BEGINNING}\n{own}", references=("Fine.",))
        for one, own in zip(INSTANCES, shown, strict=True)
    ]
    assert any("who is Al." in question.instruction for question in made(instances))


def bridges(end: str) -> list[Instance]:
    """An instance for each number, with a text of one sentence, and none that retells it."""
    shown = "{beginning} the people of {city} were happy with their bridge number {number}{end}"
    return [
        replace(
            one,
            instruction=shown.format(beginning=("In time", "There")[n % 2], city=CITIES[n % 4], number=n, end=end),
            references=("Fine.",),
        )
        for n, one in enumerate(INSTANCES)
    ]


def test_a_claim_less_a_part_is_said_and_one_with_a_part_more_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SHORTENED", 1.0)
    seen = Counter()
    for question in made(bridges(" because they had seen others before.")):
        shown, claim, (says, denies, left_open) = parts(question)
        shorter = ("because" in shown) > ("because" in claim)
        if not shorter and "because" in shown:
            continue  # One of the whole sentences, where there was no shorter one.
        if denies != left_open:
            kind = (
                "says" if question.references[0] == says else "denies" if question.references[0] == denies else "open"
            )
            seen[kind] += 1
            assert shorter == (kind != "open")
        if shorter:
            assert (("not" in shown) == ("not" in claim)) == (question.references[0] == says)
    assert min(seen[kind] for kind in ("says", "denies", "open")) > 5


def test_what_someone_makes_of_a_sentence_tells_whether_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SHORTENED", 0.0)
    monkeypatch.setattr(claims, "REPORTED", 1.0)
    reports = [(re.escape(report.format(who="WHO", said="SAID")), tells) for report, tells in REPORTS]
    reports = [(re.compile(one.replace("WHO", ".+").replace("SAID", "(?P<said>.+)")), tells) for one, tells in reports]
    seen = Counter()
    for question in made(bridges(".")):
        shown, claim, answers = parts(question)
        said = [(tells, match["said"]) for report, tells in reports if (match := report.fullmatch(shown))]
        if not said:
            continue  # A claim on another text.
        ((tells, sentence),) = said
        assert sentence.startswith(("in time", "there"))
        same = sentence.lower() == claim.lower().rstrip(".")
        assert same or negated(claim).lower().rstrip(".") == sentence.lower()
        kind = claims.OPEN if tells == claims.OPEN else claims.SAYS if same == (tells == claims.SAYS) else claims.DENIES
        assert question.references == (answers[kind],), question.instruction
        seen[tells, same] += 1
    assert min(seen[tells, same] for tells in range(3) for same in (True, False)) > 3
