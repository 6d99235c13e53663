"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping

BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2 (MiniLM-L6-H384)"
LICENCE = "Apache-2.0"

_CARD = """\
# {name}

A scorer for [cappy-lite](https://pypi.org/project/cappy-lite/): it reads an instruction and candidate answers, and
gives each candidate a score from 0 to 1 of how well it answers. It runs on a CPU. It ranks answers and writes none.

## Use

    import cappy_lite

    cappy_lite.rerank("Put the concepts together to form a sentence: ski, mountain, skier", candidates)

Meant for choosing among answers that a language model, a search or a list of labels offers for an English instruction,
up to {max_tokens} tokens of instruction and candidate together.

## How it was made

A BERT encoder of 6 layers, started from {base}, trained by regression
as in Cappy (Tan et al., 2023): right choices and references are worth 1, wrong choices 0, and other texts their best
Rouge-L F-measure over the references. Those texts were made without a language model: answers of similar and of other
instances, spans of the instruction, damaged references. All candidates of an instruction share one row, and a candidate
sees the instruction and itself alone: its score does not depend on the other candidates.

Data: T0's training tasks (P3) as collected by the self-instruct project, Super-NaturalInstructions without the tasks
that are marked as non-commercial, and rows of rotten_tomatoes and TREC, rendered with PromptSource's templates. The
underlying data sets have terms of their own.

Weights and activations of linear layers are 8-bit integers with fixed scales, calibrated on held-out questions;
embeddings are 8-bit; all else is float32.

## Figures

On questions held out from training, of tasks seen in training ("closed": how far the picks' mean Rouge-L comes from a
random pick, 0, to the best one, 1):

| figure | value |
| --- | --- |
{figures}

8 bits against float32, on {questions} of these questions: scores differ by {quantised_difference:.4f} in the mean, and
{same_pick:.1%} of {clear_questions} questions with a clear best candidate keep it. Figures on unseen tasks are in
cappy-lite's README.

## Limits

- A small model: it judges whether an answer fits the instruction's form and words, and knows few facts. It does not
  check arithmetic, code or truth.
- English only. Longer instructions lose their middle.
- Scores order the candidates of one instruction; they are no calibrated probabilities.
- Trained on public data sets with their biases. Don't let it decide about people.

## Licence

{licence}, as the base model's.
"""


def model_card(name: str, *, max_tokens: int, training: Mapping[str, float], parity: Mapping[str, float]) -> str:
    """The README.md of a model folder; `training` and `parity` are the figures in its config."""
    figures = "\n".join(f"| {key} | {value:g} |" for key, value in training.items())
    return _CARD.format(name=name, max_tokens=max_tokens, base=BASE_MODEL, licence=LICENCE, figures=figures, **parity)
