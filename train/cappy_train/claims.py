"""Questions about claims: whether a text says so, denies it, or leaves it open; each with choices.

To tell takes to read both word for word, which few of the other questions ask for. A claim is a sentence of the text,
whole or without a part, or an answer that retells it; a fact is changed in a wrong one, as Kryściński et al. (2020),
"Evaluating the Factual Consistency of Abstractive Text Summarization", make theirs. A text may say too that someone
knows what a sentence says, or doesn't think so, or asks. What is left open is asked there, is a part that the text
leaves out, or is said of another text.
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
# Where there is a retelling, the share of claims that are one; of the others, the shares that are a sentence without a
# part of it, and one that the text reports.
RETELLINGS, SHORTENED, REPORTED = 0.6, 0.35, 0.35
# A claim on another text is on one that shares more words than so many others.
COMPARED = 8

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

# Who holds something, and what that tells of it.
WHO = ("I", "We", "They", "People", "Her brother", "The neighbours", "My teacher", "Most of us")
REPORTS = (
    ("{who} knew that {said}.", SAYS),
    ("{who} didn't know that {said}.", SAYS),
    ("{who} had forgotten that {said}.", SAYS),
    ("{who} didn't mind that {said}.", SAYS),
    ("Did anyone notice that {said}?", SAYS),
    ("It is odd that {said}, but true.", SAYS),
    ("{who} found out that {said}.", SAYS),
    ("It can't be denied that {said}.", SAYS),
    ("{who} didn't think that {said}.", DENIES),
    ("I don't believe that {said}.", DENIES),
    ("{who} wrongly thought that {said}.", DENIES),
    ("It isn't true that {said}.", DENIES),
    ("{who} only pretended that {said}.", DENIES),
    ("Nobody would say that {said}.", DENIES),
    ("{who} denied, and rightly, that {said}.", DENIES),
    ("It is a lie that {said}.", DENIES),
    ("{who} asked whether {said}.", OPEN),
    ("If {said}, so much the better.", OPEN),
    ("{who} hoped that {said}.", OPEN),
    ("It may be that {said}.", OPEN),
    ("{who} couldn't say whether {said}.", OPEN),
    ("Do you think that {said}?", OPEN),
    ("Some say that {said}, others deny it.", OPEN),
    ("Suppose that {said}.", OPEN),
)
# With what sentences begin that isn't written with a capital inside of another.
SMALL = re.compile(
    r"(?:The|A|An|He|She|It|They|We|You|This|That|These|Those|There|His|Her|Their|Its|My|Our|Your|Some|Many|Most|All|"
    r"In|On|At|One|Two|Three|No|Both|Each|After|When)\b"
)

# What may be left out of a sentence: what is in brackets or between commas, what precedes the first comma if it tells
# when, where or how, and what follows the main clause.
LEFT_OUT = tuple(
    re.compile(pattern)
    for pattern in (
        r" \([^()]+\)",
        r" ?, (?:an?|the|who|which|whose|where|then|now|along|including|such|in|on|at|of|with|by|for|\w+ed|\w+ing)\b"
        r"[^,]{4,}, ?(?!and\b|or\b)",
        r"^(?:In|On|At|After|Before|During|When|While|Since|By|For|With|Despite|Although|As|According) [^,]{4,60}, ",
        r" ?,? (?:who|which|where|while|after|before|because|although|since|when|but|so that|in order to|despite)\b"
        r"[^,]{8,}?(?= ?[.!]?$)",
        r" ?, (?:and|\w+ing)\b[^,]{8,}?(?= ?[.!]?$)",
    )
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
        if is_claim(reference) and len(words & known) >= RETOLD * len(words):
            yield reference


def is_claim(text: str) -> bool:
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
    drawn, made = rng.random(), None
    if kind != OPEN and text.retellings and rng.random() < RETELLINGS:
        made = _retold(text, kind == SAYS, rng)
    elif drawn < SHORTENED:
        made = _shortened(text, kind, rng)
    elif drawn < SHORTENED + REPORTED:
        made = _reported(text, kind, rng)
    if made is None:
        made = _left_open(text, pool, rng) if kind == OPEN else _repeated(text, kind == SAYS, rng)
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
    words = rouge_words(" ".join(text.sentences))
    others = rng.sample(pool, min(len(pool), COMPARED))
    other = max(others, key=lambda one: one is not text and len(words & rouge_words(" ".join(one.sentences))))
    claims = [one for one in (*other.sentences, *other.retellings) if is_claim(one) and one not in text.sentences]
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


def _shortened(text: Text, kind: int, rng: random.Random) -> tuple[str, str] | None:
    """A text, and a sentence of it less what can be left out, with a fact changed in either if the text denies it.

    If the text leaves it open, it is the text whose sentence has less.
    """
    pairs = [pair for pair in _changeable(text, rng) if shortenings(pair[0])]
    if not pairs:
        return None
    versions = rng.choice(pairs)
    in_text = rng.choice(versions)
    in_claim = next(version for version in versions if version != in_text) if kind == DENIES else in_text
    shorter, of_claim = shortenings(in_text), shortenings(in_claim)
    # What is changed can make a part too long or too short to leave out: then the two are no pairs, or there are none.
    if not shorter or len(shorter) != len(of_claim):
        return None
    less, claim = rng.choice(list(zip(shorter, of_claim, strict=True)))
    if kind == OPEN:
        return _shown(text, versions[0], less), in_text
    return None if kind == DENIES and claim in shorter else (_shown(text, versions[0], in_text), claim)


def shortenings(sentence: str) -> list[str]:
    """The claims that a sentence makes when one part of it is left out."""
    made = []
    for pattern in LEFT_OUT:
        for match in pattern.finditer(sentence):
            rest = sentence[: match.start()] + " " * (sentence[match.end() - 1] in ", ") + sentence[match.end() :]
            rest = " ".join(rest.split())
            rest = rest[:1].upper() + rest[1:] if sentence[:1].isupper() else rest
            if is_claim(rest):
                made.append(rest)
    return made


def _reported(text: Text, kind: int, rng: random.Random) -> tuple[str, str] | None:
    """A text that reports what someone makes of one of its sentences, and that sentence or what it denies."""
    pairs = [(one, other) for one in text.sentences if is_claim(one) and SMALL.match(one) and (other := negated(one))]
    if not pairs:
        return None
    versions = rng.choice(pairs)
    in_text = rng.choice(versions)
    other = next(version for version in versions if version != in_text)
    report, tells = rng.choice([one for one in REPORTS if (one[1] == OPEN) == (kind == OPEN)])
    claim = rng.choice(versions) if kind == OPEN else in_text if tells == kind else other
    said = (in_text[0].lower() + in_text[1:]).rstrip(".! ")
    return _shown(text, versions[0], report.format(who=rng.choice(WHO), said=said)), claim


def _changeable(text: Text, rng: random.Random) -> list[tuple[str, str]]:
    """The sentences of a text that are claims and can be changed, each with what it becomes."""
    whole = " ".join(text.sentences)
    return [
        (sentence, changed)
        for sentence in text.sentences
        if is_claim(sentence) and (changed := _changed(sentence, whole, rng))
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
