"""Questions about answers: whether a response to an open instruction is right, with two choices.

Open instructions are many and of all kinds, questions with choices few and of few kinds. So some of the former become
some of the latter: a yes or no that only reading both texts can tell, in other words each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cappy_train.instances import Instance
from cappy_train.neighbours import rouge_words

# The share of instances that are asked about.
VERIFIED = 0.2
# Longer instructions would lose their middle.
INSTRUCTION_CHARACTERS = 1200
# A wrong answer is of one of these sources of `distractors`.
WRONG = ("neighbour", "damaged", "span")
# What is asked, and the choices: what to say of a right answer, then of a wrong one.
WORDINGS = (
    ("{instruction}\n\nProposed answer: {response}\n\nIs the proposed answer correct? Yes or no?", "Yes", "No"),
    ("{instruction}\nAnswer: {response}\nIs this answer right or wrong?", "right", "wrong"),
    ('{instruction}\n\nSomeone replied: "{response}"\n\nTrue or false: the reply is correct.', "True", "False"),
    ("Does the response fit the task?\n\nTask: {instruction}\n\nResponse: {response}", "Yes", "No"),
    ("{instruction}\n\nGiven that, does it hold that the answer is {response}? Yes or no.", "yes", "no"),
    ("{instruction}\nIs it true that the answer is: {response}", "true", "false"),
    ("Check the solution.\n{instruction}\nSolution: {response}\nVerdict:", "correct", "incorrect"),
    ("{instruction}\n\nA student wrote: {response}\n\nDid the student make a mistake?", "No", "Yes"),
    ('The answer "{response}" was given to what follows. Is it wrong?\n\n{instruction}', "No", "Yes"),
    (
        "Text: {instruction}\nClaim: {response} is the answer.\nIs the claim supported or refuted?",
        "supported",
        "refuted",
    ),
)


def with_verifications(instances: Iterable[Instance], *, seed: int) -> Iterator[Instance]:
    """The instances in their order, and after some of split train without choices a question about an answer to it.

    As many ask about a reference as about a wrong answer: a candidate of the sources in WRONG, which `distractors`
    makes. What an instance gets depends on the seed, its id and its candidates alone.
    """
    for instance in instances:
        yield instance
        rng = random.Random(f"{seed}:{instance.id}:verification")
        open_ended = instance.split == "train" and instance.choices is None
        if open_ended and len(instance.instruction) <= INSTRUCTION_CHARACTERS and rng.random() < VERIFIED:
            yield from _verification(instance, rng)


def _verification(instance: Instance, rng: random.Random) -> Iterator[Instance]:
    """One question, or none where nothing wrong is at hand."""
    words = [rouge_words(reference) for reference in instance.references]
    wrong = [
        candidate.text
        for candidate in instance.candidates
        if candidate.source in WRONG and rouge_words(candidate.text) and rouge_words(candidate.text) not in words
    ]
    if not wrong:
        return
    asked, if_right, if_wrong = rng.choice(WORDINGS)
    is_right = rng.random() < 0.5
    response = rng.choice(instance.references if is_right else wrong)
    yield replace(
        instance,
        id=f"{instance.id}:verification",
        template="verification",
        instruction=asked.format(instruction=instance.instruction, response=response),
        references=(if_right if is_right else if_wrong,),
        candidates=(),
        choices=(if_right, if_wrong),
    )
