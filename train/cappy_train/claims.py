"""Questions about claims: whether a text says so, denies it, or leaves it open; each with choices.

To tell takes to read both word for word, which few of the other questions ask for. A claim is a sentence of the text,
or an answer that retells it; a fact is changed in a wrong one, as Kryściński et al. (2020), "Evaluating the Factual
Consistency of Abstractive Text Summarization", make theirs; and what is left open is said of another text.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cappy_train.instances import Instance
from cappy_train.neighbours import rouge_words
from cappy_train.shown_texts import followed_by, shown_paragraphs

# The share of texts that are asked about.
ASKED = 0.6
# Of a task at most so many: short texts that all instructions show would be most of them.
MOST_OF_A_TASK = 300
# A text has so many words, and a claim.
TEXT_WORDS = range(12, 161)
CLAIM_WORDS = range(5, 41)
# An answer retells a text that has so much of its words, if that isn't what the task forbids.
RETOLD = 0.6
NOT_RETOLD = re.compile("incorrect|wrong|negati|perturb|style_transfer|antistereotype|odd-man|question")
# Where there is a retelling, the share of claims that are one.
RETELLINGS = 0.6

SAYS, DENIES, OPEN = range(3)
# What is asked, and the choices: what to say if the text says so, denies it, and leaves it open.
WORDINGS = (
    ("{text}\n\nClaim: {claim}\n\nDoes the text bear the claim out? Yes or no?", "Yes", "No", "No"),
    ("Text: {text}\nStatement: {claim}\nTrue or false?", "true", "false", "false"),
    ("{text}\n\nSomeone who read this says: {claim}\n\nAre they right?", "Yes", "No", "No"),
    ("Is the statement a fact of the passage?\n\nPassage: {text}\n\nStatement: {claim}", "yes", "no", "no"),
    ('Going by what follows, can it be doubted that "{claim}"?\n\n{text}', "No", "Yes", "Yes"),
    ("{text}\nSummary: {claim}\nIs the summary correct or incorrect?", "correct", "incorrect", "incorrect"),
    ("{text}\n\nHow does this stand to the text: {claim}\nYes, no, or maybe?", "Yes", "No", "Maybe"),
    ("Text: {text}\nClaim: {claim}\nVerdict:", "supported", "contradicted", "not mentioned"),
    ("{text}\n\nWhat of this claim? {claim}\nIt is true, false, or unclear.", "True", "False", "Unclear"),
    ('Passage: {text}\n\n"{claim}" Is that certain, impossible, or possible?', "certain", "impossible", "possible"),
)

NUMBER = re.compile(r"\b\d(?:[\d,.]*\d)?\b")
# Not at the beginning of a sentence, where any word may have a capital.
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+\b")
NEGATED = re.compile(r"\b(is|are|was|were|can|could|will|would|should|did|does) not\b")
AUXILIARY = re.compile(r"\b(is|are|was|were|can|could|will|would|should)\b(?!['\u2019]| not\b)")


@dataclass(frozen=True, slots=True)
class Text:
    """The sentences of a text that an instance's instruction shows, and answers that retell it."""

    instance: Instance
    sentences: tuple[str, ...]
    retellings: tuple[str, ...]


def with_claims(instances: Iterable[Instance], *, seed: int) -> Iterator[Instance]:
    """The instances in their order, and after some of split train that show a text a question about a claim.

    What an instance gets depends on the seed and on the instances of its block (BLOCK_INSTANCES in their order).
    """
    return followed_by(instances, lambda block: _questions(block, seed))


def _questions(block: Sequence[Instance], seed: int) -> dict[str, Instance]:
    """By the id of the instance whose text they are about."""
    pools: dict[str, list[Text]] = defaultdict(list)
    for text in _texts(block, seed):
        pools[text.instance.task].append(text)
    questions = {}
    for task, pool in pools.items():
        for text in random.Random(f"{seed}:{task}:claims").sample(pool, min(len(pool), MOST_OF_A_TASK)):
            rng = random.Random(f"{seed}:{text.instance.id}:claim")
            if question := _question(text, pool, rng):
                questions[text.instance.id] = question
    return questions


def _texts(block: Sequence[Instance], seed: int) -> list[Text]:
    """Some of the texts that instances show, each once; none that a question of `cloze` left a gap in."""
    found: dict[tuple[str, ...], Text] = {}
    for instance, sentences in shown_paragraphs(one for one in block if one.template != "cloze"):
        words = sum(len(sentence.split()) for sentence in sentences)
        whole = " ".join(sentences)
        drawn = random.Random(f"{seed}:{whole}:claimed").random() < ASKED
        if drawn and words in TEXT_WORDS and sentences not in found:
            found[sentences] = Text(instance, sentences, tuple(_retellings(instance, whole)))
    return list(found.values())


def _retellings(instance: Instance, text: str) -> Iterator[str]:
    if instance.choices is not None or NOT_RETOLD.search(instance.task):
        return
    known = rouge_words(text)
    for reference in instance.references:
        words = rouge_words(reference)
        if _is_claim(reference) and len(words & known) >= RETOLD * len(words):
            yield reference


def _is_claim(text: str) -> bool:
    """Whether it looks like one statement in words."""
    words = text.split()
    plain = sum(word.isalpha() for word in words)
    return len(words) in CLAIM_WORDS and plain > len(words) / 2 and "?" not in text and "\n" not in text


def _question(text: Text, pool: Sequence[Text], rng: random.Random) -> Instance | None:
    """A question, or none where no claim of the kind that is drawn can be made."""
    wording, *answers = rng.choice(WORDINGS)
    choices = tuple(dict.fromkeys(answers))
    answer = rng.choice(choices)
    kind = rng.choice([kind for kind, own in enumerate(answers) if own == answer])
    if kind == OPEN:
        made = _left_open(text, pool, rng)
    elif text.retellings and rng.random() < RETELLINGS:
        made = _retold(text, kind == SAYS, rng)
    else:
        made = _repeated(text, kind == SAYS, rng)
    if made is None:
        return None
    shown, claim = made
    return replace(
        text.instance,
        id=f"{text.instance.id}:claim",
        template="claim",
        instruction=wording.format(text=shown, claim=claim),
        references=(answer,),
        candidates=(),
        choices=choices,
    )


def _left_open(text: Text, pool: Sequence[Text], rng: random.Random) -> tuple[str, str] | None:
    """A text, and what another text says, with a fact changed in either, in both or in none.

    As in the others, so that a changed fact doesn't tell that something is said or denied.
    """
    other = rng.choice(pool)
    claims = [one for one in (*other.sentences, *other.retellings) if _is_claim(one) and one not in text.sentences]
    if other.instance.id == text.instance.id or not claims:
        return None
    claim = rng.choice(claims)
    changed_claim = _changed(claim, " ".join(other.sentences), rng) or claim
    versions = rng.choice(_changeable(text, rng) or [(text.sentences[0], text.sentences[0])])
    return _shown(text, versions[0], rng.choice(versions)), rng.choice((claim, changed_claim))


def _retold(text: Text, says: bool, rng: random.Random) -> tuple[str, str] | None:
    """A text, and a retelling, with a fact changed if it isn't what the text says."""
    shown, claim = " ".join(text.sentences), rng.choice(text.retellings)
    if says:
        return shown, claim
    changed = with_other_fact(claim, shown, rng)
    return None if changed is None else (shown, changed)


def _repeated(text: Text, says: bool, rng: random.Random) -> tuple[str, str] | None:
    """A text, and a sentence of it, with a fact changed in either, or in both or none if the text says so.

    So neither the text nor the claim tells anything by itself.
    """
    pairs = _changeable(text, rng)
    if not pairs:
        return None
    versions = rng.choice(pairs)
    in_text = rng.choice(versions)
    in_claim = in_text if says else next(version for version in versions if version != in_text)
    return _shown(text, versions[0], in_text), in_claim


def _changeable(text: Text, rng: random.Random) -> list[tuple[str, str]]:
    """The sentences of a text that are claims and can be changed, each with what it becomes."""
    whole = " ".join(text.sentences)
    return [
        (sentence, changed)
        for sentence in text.sentences
        if _is_claim(sentence) and (changed := _changed(sentence, whole, rng))
    ]


def _changed(claim: str, text: str, rng: random.Random) -> str | None:
    return with_other_fact(claim, text, rng) or negated(claim)


def _shown(text: Text, sentence: str, instead: str) -> str:
    return " ".join(instead if one == sentence else one for one in text.sentences)


def with_other_fact(claim: str, text: str, rng: random.Random) -> str | None:
    """A claim with a number or a name replaced by another one of the text.

    None: there is none to replace, or by, or the text says that too.
    """
    options = []
    for pattern in (NUMBER, NAME):
        known = sorted(set(pattern.findall(text)) - set(pattern.findall(claim)))
        options += [(match.span(), known) for match in pattern.finditer(claim) if known]
    if not options:
        return None
    (start, end), known = rng.choice(options)
    changed = claim[:start] + rng.choice(known) + claim[end:]
    return None if changed in text else changed


def negated(sentence: str) -> str | None:
    """A sentence with its first auxiliary verb negated, or not negated any more; None: it has none."""
    if NEGATED.search(sentence):
        return NEGATED.sub(r"\1", sentence, count=1)
    made, count = AUXILIARY.subn(r"\1 not", sentence, count=1)
    return made if count else None
