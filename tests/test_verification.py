"""Questions about answers, made of open instructions."""

from dataclasses import replace
from itertools import pairwise

from cappy_train.instances import Candidate, Instance
from cappy_train.verification import INSTRUCTION_CHARACTERS, VERIFIED, WORDINGS, with_verifications

OPEN = Instance("o", "t", "f", "Name {a} fruit.", ("An apple.", "A pear."), (), None, "train")
CANDIDATES = (Candidate("A chair.", "neighbour"), Candidate("apple an", "damaged"), Candidate("?", "probe"))
ASKED = [replace(OPEN, id=f"o{number}", candidates=CANDIDATES) for number in range(1000)]


def made(instances: list[Instance], seed: int = 0) -> list[Instance]:
    return [one for one in with_verifications(instances, seed=seed) if one.template == "verification"]


def test_as_many_are_right_as_wrong_and_say_so() -> None:
    questions = made(ASKED)
    assert 0.8 * VERIFIED < len(questions) / len(ASKED) < 1.2 * VERIFIED
    right = 0
    for question in questions:
        assert question.choices is not None
        (wording,) = (
            wording
            for wording in WORDINGS
            for response in ("An apple.", "A pear.", "A chair.")
            if wording[0].format(instruction=OPEN.instruction, response=response) == question.instruction
        )
        is_right = "chair" not in question.instruction
        right += is_right
        # Not "apple an": it has a reference's very words.
        assert question.references == ((wording[1] if is_right else wording[2]),)
        assert question.choices == wording[1:]
    assert 0.35 < right / len(questions) < 0.65
    assert len({question.references for question in questions}) > 10


def test_the_instances_stay_and_questions_follow_theirs() -> None:
    out = list(with_verifications(ASKED, seed=0))
    assert [one for one in out if one.template != "verification"] == ASKED
    assert all(
        before.id + ":verification" == after.id for before, after in pairwise(out) if after.template == "verification"
    )


def test_draws_follow_from_seed_and_id() -> None:
    assert made(ASKED) == made(ASKED[::-1])[::-1]
    assert made(ASKED) != made(ASKED, seed=1)


def test_only_open_short_training_instances_with_something_wrong_are_asked_about() -> None:
    for changed in (
        {"split": "dev"},
        {"choices": ("An apple.", "A pear.")},
        {"instruction": "x" * (INSTRUCTION_CHARACTERS + 1)},
        {"candidates": CANDIDATES[1:]},
    ):
        assert made([replace(one, **changed) for one in ASKED]) == []
