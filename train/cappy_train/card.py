"""The model cards of exported and of imported folders."""

from __future__ import annotations

from collections.abc import Mapping

_CARD = """\
# {name}

A scorer for cappy-lite: it reads an instruction and candidate answers, and gives each candidate a score from 0 to 1 of
how well it answers. It runs on a CPU. It ranks answers and writes none.

## Use

    import cappy_lite

    cappy_lite.rerank("Put the concepts together to form a sentence: ski, mountain, skier", candidates, model=FOLDER)

FOLDER is this folder's path; a model that comes with cappy-lite goes by its name, and the default one needs none. Meant
for choosing among answers that a language model, a search or a list of labels offers for an instruction, up to
{max_tokens} tokens of instruction and candidate together.

## How it was made

A {build} encoder of {layers} layers, started from {base_model}, trained with labels as in Cappy (Tan et al., 2023):
right choices and references are worth 1, wrong choices 0, and other texts their best Rouge-L F-measure over the
references.
{origin}
All candidates of an instruction share one row, and a candidate sees the instruction and itself alone: its score does
not depend on the other candidates.

{precision}
{figures}{rounding}
## Limits

- A small model: it judges whether an answer fits the instruction's form and words, and knows few facts. It does not
  check arithmetic, code or truth.
- Longer instructions lose their middle.
{scores}
- It has the biases of its training data. Don't let it decide about people.
{notes}
## Licence

{licence}.
"""

_EIGHT_BITS = """\
Inputs of linear layers are 8-bit integers, their weights 7-bit ones, with fixed scales that were calibrated on held-out
questions; embeddings are 8-bit; all else is floating point."""
_FIGURES = """
## Figures

After {steps:.0f} steps (of the last pass), on dev questions (`closed`: how far the mean Rouge-L of the picks comes from
a random pick, 0, to the best one, 1):

| figure | value |
| --- | --- |
{table}
"""
_ROUNDING = """
8 bits against float32, on {questions} dev questions: scores differ by {quantised_difference:.4f} in the mean, and
{same_pick:.1%} of {clear_questions} questions with a clear best candidate keep it.
"""

# What a network was trained on.
PRETRAINED = """\
What training made small: {losses}."""
UNTOLD = """ What it learned from is its maker's to say, here."""
AVERAGED = """
Its weights are the mean of these networks' (and their shares): {networks}."""
ADAPTED = """\
Last of all it learned from {candidates:,} candidates for {instances:,} instances of {tasks}, by a listwise loss over
the candidates of each: it is adapted to those, and its scores tell which candidate of an instruction is better, and no
more."""

_ORDERING = "- Scores order the candidates of one instruction; they are no calibrated probabilities."
_CALIBRATED = """\
- Scores are calibrated: candidates of a score have it as their label on average. The calibration was fitted to
  {fitted_candidates:,} candidates of dev questions; on {candidates:,} of other dev questions the expected calibration
  error is {error_after:.3f} with it and {error_before:.3f} without. On tasks unlike these it may be larger."""

_JOINT_CARD = """\
# {name}

A cross-encoder for cappy-lite, {origin} {base_model}: it reads an instruction and a candidate answer together, and
gives a score of how well the candidate answers, {activation}. It runs on a CPU.

## Use

    import cappy_lite

    cappy_lite.rerank("Put the concepts together to form a sentence: ski, mountain, skier", candidates, model=FOLDER)

FOLDER is this folder's path. It reads up to {max_tokens} tokens of instruction and candidate together; a longer
instruction loses its middle.
{made}
## Precision

{precision}

On {pairs} pairs of texts, whose outputs vary by {spread:.4f} (standard deviation), the float32 graph's outputs differ
from those of transformers by at most {network_difference:.1e}{quantised}.
{notes}
## Licence

{licence}.
"""


def model_card(
    identity: Mapping[str, object],
    *,
    build: str,
    layers: int,
    float32: bool,
    training: Mapping[str, float],
    parity: Mapping[str, float],
    calibration_proof: Mapping[str, float] | None,
    origin: str,
    notes: str = "",
) -> str:
    """The README.md of a model folder.

    identity: name, base_model, licence and max_tokens, as in its config; so are the figures in `training`, `parity` and
        `calibration_proof`, which is None where scores aren't calibrated.
    build: whose encoder it has, such as BERT.
    float32: whether its weights have no 8 bits.
    origin: what it was trained on.
    notes: what its maker says of it, Markdown with headings of level 2; "" for nothing.
    """
    return _CARD.format(
        **identity,
        build=build,
        layers=layers,
        precision=_FLOAT if float32 else _EIGHT_BITS,
        rounding="" if float32 else _ROUNDING.format(**parity),
        figures=_figures(training),
        scores=_ORDERING if calibration_proof is None else _CALIBRATED.format(**calibration_proof),
        origin=origin,
        notes=_section(notes),
    )


def joint_card(
    identity: Mapping[str, object],
    *,
    activation: str,
    calibrated: bool,
    parity: Mapping[str, float | None],
    training: Mapping[str, float] | None = None,
    notes: str = "",
) -> str:
    """The README.md of a joint model's folder; identity, parity, training and notes are as above.

    calibrated: whether 8 bits have fixed scales.
    training: None: it was imported.
    """
    difference = parity["quantised_difference"]
    eight_bits = _FIXED if calibrated else _QUANTISED
    return _JOINT_CARD.format(
        **identity,
        **parity,
        origin="imported from" if training is None else "trained from",
        made="" if training is None else _TRAINED.format(figures=_figures(training)),
        activation={"identity": "the network's own output", "sigmoid": "from 0 to 1"}[activation],
        precision=_FLOAT if difference is None else eight_bits,
        quantised="" if difference is None else f"; 8 bits move them by {difference:.4f} in the mean",
        notes=_section(notes),
    )


def _section(notes: str) -> str:
    return f"\n{notes.strip()}\n" if notes else ""


def _figures(training: Mapping[str, float]) -> str:
    """A section of dev figures, if there are any."""
    table = "\n".join(f"| {key} | {value:.3f} |" for key, value in training.items() if "_dev_" in key)
    return _FIGURES.format(steps=training["steps"], table=table) if table else ""


_TRAINED = """
## How it was made

It was trained with labels as in Cappy (Tan et al., 2023): right choices and references are worth 1, wrong choices 0,
and other texts their best Rouge-L F-measure over the references.
{figures}"""
_FLOAT = "All weights are float32."
_QUANTISED = """\
The encoder's linear layers multiply integers, inputs of 8 bits with a scale a token by weights of 7 bits with a scale a
column; word embeddings are 8-bit; all else is float32."""
_FIXED = """\
The encoder's linear layers multiply integers, inputs of 8 bits by weights of 7 bits with a scale a column; the inputs'
scales are fixed, and were calibrated on texts of the model's own sort. So does its attention, with a scale a vector.
Embeddings are 8-bit; all else is float32."""
