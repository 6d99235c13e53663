"""Questions that texts ask by themselves."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from cappy_train import cloze
from cappy_train.cloze import (
    GAP,
    SENTENCE_WORDINGS,
    WORD_WORDINGS,
    passage_of,
    telling_word,
    with_cloze_questions,
)
from cappy_train.instances import Instance
from cappy_train.shown_texts import longest_paragraph

TOPICS = ("rivers", "engines", "gardens", "violins")
BEGINNING = "Read the text that follows here. Then answer the question. It is a short one. You can do it well."


def sentence(topic: str, number: int) -> str:
    return f"Number {number} of the {'many' if number % 2 else 'great'} {topic} was seen there."


def text(topic: str, start: int) -> str:
    plain = f"Nobody knew what came of it in the year {start}. It was a long and quiet day for them all {start}."
    return " ".join(["Here is what they say of it.", sentence(topic, start), plain, sentence(topic, start + 1), plain])


INSTANCES = [
    Instance(
        id=f"i{number}",
        task=TOPICS[number % 4],
        template="ask",
        instruction=f"{BEGINNING}\n{text(TOPICS[number % 4], number)}\nWhy?",
        references=("because",),
        candidates=(),
        choices=None,
        split="train",
    )
    for number in range(400)
]


def made(instances: list[Instance], seed: int = 0) -> list[Instance]:
    return [one for one in with_cloze_questions(instances, seed=seed) if one.template == "cloze"]


def without_list(question: Instance) -> tuple[str, list[str]]:
    """A question's instruction before the choices that it lists, and these."""
    asked, *listed = question.instruction.split("\n- ")
    return asked, listed


def filled(question: Instance) -> str | None:
    """The text that a question about a sentence is of, with its answer in its place; None of one about a word."""
    asked, _ = without_list(question)
    for place, wordings in SENTENCE_WORDINGS.items():
        for wording in wordings:
            before, after = wording.split("{text}")
            if asked.startswith(before) and asked.endswith(after):
                shown = asked[len(before) : len(asked) - len(after)]
                answer = question.references[0]
                whole = {"first": f"{answer} {shown}", "last": f"{shown} {answer}"}
                return whole.get(place, shown.replace(GAP, answer))
    return None


def test_what_was_taken_out_of_a_text_is_right_and_of_others_wrong() -> None:
    texts = [text(TOPICS[number % 4], number) for number in range(400)]
    questions = made(INSTANCES)
    assert 150 < len(questions) <= 400
    kinds = Counter()
    lists = 0
    for question in questions:
        assert question.choices is not None
        (right,) = question.references
        assert 2 <= len(question.choices) <= 4
        assert question.choices.count(right) == 1
        asked, listed = without_list(question)
        assert sorted(listed) in ([], sorted(question.choices))
        lists += bool(listed)
        if " " not in right:
            assert right not in asked.split()
            assert question.instruction.startswith(tuple(wording.split("{text}")[0] for wording in WORD_WORDINGS))
            kinds["word"] += 1
        else:
            own = filled(question)
            assert own is not None
            assert any(own in whole for whole in texts)
            assert not any(f" {choice}" in f" {own}" for choice in question.choices if choice != right)
            kinds["sentence"] += 1
    assert min(kinds.values()) > 10
    assert 0.35 < lists / len(questions) < 0.65


def test_the_instances_stay_and_what_they_all_begin_with_is_not_asked_about() -> None:
    out = list(with_cloze_questions(INSTANCES, seed=0))
    assert [one for one in out if one.template != "cloze"] == INSTANCES
    assert not any("Then answer" in one.instruction for one in made(INSTANCES))


def test_draws_follow_from_the_seed() -> None:
    assert made(INSTANCES) == made(INSTANCES)
    assert made(INSTANCES) != made(INSTANCES, seed=1)


def test_a_text_is_asked_about_once_and_only_in_training() -> None:
    again = [replace(one, id=f"{one.id} again", template="other") for one in INSTANCES]
    assert len(made([*INSTANCES, *again])) <= len(INSTANCES)
    assert made([replace(one, split="dev") for one in INSTANCES]) == []


@pytest.mark.parametrize("short", ["", "One. Two. Three. Four. Five.", "Just one sentence of some seven words."])
def test_texts_with_too_few_sentences_are_passed_over(short: str) -> None:
    assert passage_of(longest_paragraph(short), random.Random(0)) == ()


def test_the_telling_word_is_frequent_in_the_text_and_rare_elsewhere() -> None:
    passage = cloze.Passage(INSTANCES[0], ("They sing of rivers.", "And of rivers they sing.", "Xylo xylo xylo xylo."))
    assert telling_word(passage, Counter(they=90, sing=40, rivers=9, xylo=1), 100) == "rivers"
    assert telling_word(passage, Counter(), 100) == ""
    common = cloze.Passage(INSTANCES[0], ("They went with them.", "With them went Anna.", "With rivers."))
    assert telling_word(common, Counter({"with": 95, "went": 70, "them": 80, "they": 90, "rivers": 9}), 100) == "rivers"


def test_no_wrong_word_stands_in_the_text() -> None:
    mixed = [
        replace(one, instruction=one.instruction.replace("\nWhy?", f" So it was of {TOPICS[(number + 1) % 4]} too."))
        for number, one in enumerate(INSTANCES)
    ]
    about_words = [one for one in made(mixed) if " " not in one.references[0]]
    assert len(about_words) > 10
    for question in about_words:
        asked, _ = without_list(question)
        assert not set(question.choices or ()) & set(asked.replace(".", "").split())


def test_numbered_sentences_and_texts_without_order_are_passed_over() -> None:
    def listing(label: str) -> list[Instance]:
        return [
            replace(
                one,
                instruction=f"{BEGINNING}\n"
                + " ".join(f"{label}{at}: {sentence(one.task, number + at)}" for at in range(5)),
            )
            for number, one in enumerate(INSTANCES)
        ]

    assert made(listing("Part "))
    assert made(listing("Sentence ")) == []
    assert made([replace(one, task="task083_babi_t1_single_supporting_fact") for one in INSTANCES]) == []
    assert made([replace(one, task="task217_rocstories_ordering_answer_generation") for one in INSTANCES]) == []
