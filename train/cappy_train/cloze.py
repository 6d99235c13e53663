"""Questions that texts ask by themselves: which sentence is missing, which word it is about; each with choices.

Instructions show many texts, on which there are few questions with choices, of few kinds. What was taken out of a text
is known to be right, and what was taken out of other texts wrong: to tell is to see what goes with what. Liu et al.
(2023), "Zero-Shot Text Classification via Self-Supervised Tuning", learn to classify from first sentences alone.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cappy_train.instances import Instance
from cappy_train.neighbours import rouge_words
from cappy_train.shown_texts import followed_by, shown_paragraphs

# A text has so many sentences, of so many words each.
SENTENCES = range(4, 7)
SENTENCE_WORDS = range(5, 41)
# Wrong choices: as many of texts of the same task, and of any task.
SAME_TASK, ANY_TASK = 2, 1
GAP = "[...]"
# A sentence that says where it stands.
NUMBERED = re.compile(r"(sentence |event |step )?\d+ ?[:.)]", re.IGNORECASE)
# The share of questions that list their choices.
LISTED = 0.5
# A text is about words that so many texts have, of so many letters: rarer ones are names and slips.
LEAST_TEXTS = 5
LEAST_LETTERS = 4

SENTENCE_WORDINGS = {
    "first": (
        "{text}\n\nWhich sentence does this text begin with?",
        "What stands before the following?\n\n{text}",
        "Find the first sentence of the text.\n\nText: {text}\n\nFirst sentence:",
    ),
    "middle": (
        "{text}\n\nWhich sentence was left out at [...]?",
        "Fill the gap [...] with the sentence that belongs there.\n\n{text}",
        "Text: {text}\nThe missing sentence is:",
    ),
    "last": (
        "{text}\n\nWhat comes next?",
        "How does this text go on?\n\n{text}",
        "Continue: {text}",
    ),
}
WORD_WORDINGS = (
    "{text}\n\nWhich word is this text about?",
    "What is the following about?\n\n{text}",
    "Text: {text}\nTopic:",
    "Which of these goes with the text?\n\n{text}",
)


@dataclass(frozen=True, slots=True)
class Passage:
    """Consecutive sentences that an instance's instruction shows."""

    instance: Instance
    sentences: tuple[str, ...]


def with_cloze_questions(instances: Iterable[Instance], *, seed: int) -> Iterator[Instance]:
    """The instances in their order, and after those of split train that show a text a question about that text.

    What an instance gets depends on the seed and on the instances of its block (BLOCK_INSTANCES in their order).
    """
    return followed_by(instances, lambda block: _questions(block, seed))


def _questions(block: Sequence[Instance], seed: int) -> dict[str, Instance]:
    """By the id of the instance whose text they are about."""
    passages = _passages(block, seed)
    frequencies = Counter(word for passage in passages for word in rouge_words(" ".join(passage.sentences)))
    by_task: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_task[passage.instance.task].append(passage)
    questions = {}
    for passage in passages:
        rng = random.Random(f"{seed}:{passage.instance.id}:cloze question")
        others = [
            other
            for pool, count in ((by_task[passage.instance.task], SAME_TASK), (passages, ANY_TASK))
            for other in rng.sample(pool, min(len(pool), count))
            if not set(other.sentences) & set(passage.sentences)
        ]
        about_a_word = rng.random() < 0.5
        question = (
            _word_question(passage, others, frequencies, len(passages), rng)
            if about_a_word
            else _sentence_question(passage, others, rng)
        )
        if question:
            questions[passage.instance.id] = question
    return questions


def _passages(block: Sequence[Instance], seed: int) -> list[Passage]:
    """Passages of the texts that instances show, each text once."""
    found: dict[tuple[str, ...], Passage] = {}
    for instance, paragraph in shown_paragraphs(block):
        rng = random.Random(f"{seed}:{instance.id}:passage")
        if paragraph not in found and (sentences := passage_of(paragraph, rng)):
            found[paragraph] = Passage(instance, sentences)
    return list(found.values())


def passage_of(paragraph: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """Some consecutive sentences of a paragraph, or none if too few of them fit."""
    fitting = [len(sentence.split()) in SENTENCE_WORDS and not NUMBERED.match(sentence) for sentence in paragraph]
    length = rng.choice(SENTENCES)
    starts = [at for at in range(len(paragraph) - length + 1) if all(fitting[at : at + length])]
    if not starts:
        return ()
    start = rng.choice(starts)
    return tuple(paragraph[start : start + length])


def _sentence_question(passage: Passage, others: Sequence[Passage], rng: random.Random) -> Instance | None:
    sentences = list(passage.sentences)
    at = rng.choice((0, rng.randrange(1, len(sentences) - 1), len(sentences) - 1))
    right = sentences.pop(at)
    place = "first" if at == 0 else "last" if at == len(sentences) else "middle"
    if place == "middle":
        sentences.insert(at, GAP)
    wrong = [rng.choice(other.sentences) for other in others]
    return _question(passage, rng.choice(SENTENCE_WORDINGS[place]), " ".join(sentences), right, wrong, rng)


def _word_question(
    passage: Passage, others: Sequence[Passage], frequencies: Counter[str], texts: int, rng: random.Random
) -> Instance | None:
    right = telling_word(passage, frequencies, texts)
    without = [sentence for sentence in passage.sentences if right not in rouge_words(sentence)]
    text = " ".join(without)
    # None that the text has: the right one would be the only one that is nowhere in it.
    wrong = {telling_word(other, frequencies, texts) for other in others} - rouge_words(text)
    if len(without) < 2 or right in wrong:
        return None
    return _question(passage, rng.choice(WORD_WORDINGS), text, right, wrong, rng)


def telling_word(passage: Passage, frequencies: Counter[str], texts: int) -> str:
    """The word that is most the text's own, by tf-idf; or "".

    frequencies: how many texts have a word, of so many `texts`.
    """
    words = re.findall("[a-z0-9]+", " ".join(passage.sentences).lower())
    counts = Counter(word for word in words if word.isalpha() and len(word) >= LEAST_LETTERS)
    known = [word for word in counts if frequencies[word] >= LEAST_TEXTS]
    return max(known, key=lambda word: counts[word] * math.log(texts / frequencies[word]), default="")


def _question(
    passage: Passage, wording: str, text: str, right: str, wrong: Iterable[str], rng: random.Random
) -> Instance | None:
    """A question with two choices at least, or none."""
    choices = sorted({right, *wrong} - {""})
    if right not in choices or len(choices) < 2:
        return None
    instruction = wording.format(text=text)
    if rng.random() < LISTED:
        instruction += "".join(f"\n- {choice}" for choice in rng.sample(choices, len(choices)))
    return replace(
        passage.instance,
        id=f"{passage.instance.id}:cloze",
        template="cloze",
        instruction=instruction,
        references=(right,),
        candidates=(),
        choices=tuple(choices),
    )
