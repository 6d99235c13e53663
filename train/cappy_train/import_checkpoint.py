"""A transformers cross-encoder becomes a model folder, with proof that it still says what transformers says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cappy_lite.activations import ACTIVATIONS
from cappy_lite.errors import InputValueError, ModelError
from cappy_lite.joint import Pair, PairEncoder, open_joint_session, rows_of, run_pairs
from cappy_lite.models import FORMAT_VERSION, GRAPH_FILE, TOKENIZER_FILE
from cappy_lite.session import available_cpus
from cappy_train.bert_weights import bert_graph_weights, why_not_packed
from cappy_train.card import joint_card
from cappy_train.checkpoint import Checkpoint, local_folder, open_checkpoint, quietly, save_tokenizer
from cappy_train.export import CARD_FILE, CONFIG_FILE, seal, write_json
from cappy_train.files import folder_written_whole
from cappy_train.graph import packed_graph
from cappy_train.graph_builder import save_graph
from cappy_train.joint_graph import export_graph
from cappy_train.joint_quantise import quantise_graph
from cappy_train.quantisation_texts import QuantisationTexts, TextPair, read_quantisation_texts
from cappy_train.quantise import observe
from cappy_train.quantise import quantise as with_fixed_scales

# More takes memory and time that grow with its square; the paper's Cappy reads as much.
USUAL_MAX_TOKENS = 512

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class JointParity:
    """How well the graph agrees with the network, in raw outputs for pairs of texts.

    network_difference: largest difference between transformers and the float32 graph.
    quantised_difference: mean difference between the float32 and the 8-bit graph, if there is one.
    spread: standard deviation of the outputs over the pairs.
    pairs: how many these are.
    """

    network_difference: float
    quantised_difference: float | None
    spread: float
    pairs: int


# For outputs up to 1; of larger ones, a share.
MAX_NETWORK_DIFFERENCE = 1e-4
# A share of the spread.
MAX_QUANTISED_DIFFERENCE = 0.25


def import_checkpoint(
    source: str,
    out: Path,
    *,
    name: str,
    base_model: str,
    licence: str,
    activation: str = "identity",
    max_tokens: int | None = None,
    quantise: bool = False,
    calibrate: Path | None = None,
) -> None:
    """Makes the model folder `out` from a checkpoint with one output, whole or not at all.

    Networks of BERT's build become graphs over packed rows, but for those in 8 bits without `calibrate`; all others
    become graphs over pairs of one length.

    Args:
        source: a checkpoint's folder, or hub:owner/name, which is downloaded.
        out: the folder to make; it must not exist.
        name: the model's name.
        base_model: where it comes from, in words.
        licence: under what terms the model is passed on.
        activation: what becomes of an output on its way to a score, a name in cappy_lite's ACTIVATIONS.
        max_tokens: the most that it shall read; by default as much as it can, but no more than USUAL_MAX_TOKENS.
        quantise: whether to round weights to 8 bits.
        calibrate: a file of instances (see `cappy_train.instances`), from which 8 bits get fixed scales; without it,
            each token's vector has a scale of its own, which takes longer to run.

    Raises:
        InputValueError: `out` exists, `source` can't be imported, it can't read `max_tokens`, or `calibrate` can't be
            read, is given without `quantise`, or for a network of another build than BERT's.
        ModelError: the graph or its quantisation doesn't agree with the network as `check_joint_parity` demands.
    """
    if out.exists():
        raise InputValueError(f"{out} exists: give --out a new folder")
    if activation not in ACTIVATIONS:
        raise InputValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    if calibrate is not None and not quantise:
        raise InputValueError(f"{calibrate} would calibrate 8 bits, which weren't asked for: quantise as well")
    quantisation_texts = read_quantisation_texts(calibrate) if calibrate is not None else None
    with quietly():
        checkpoint = open_checkpoint(local_folder(source))
    if max_tokens is not None and max_tokens > checkpoint.max_tokens:
        raise InputValueError(f"{source} reads at most {checkpoint.max_tokens} tokens: lower max_tokens {max_tokens}")
    obstacle = why_not_packed(checkpoint)
    if quantisation_texts is not None and obstacle:
        raise InputValueError(
            f"{source} can't be calibrated: {obstacle}. Only networks of BERT's build can (BERT, MiniLM, RoBERTa, "
            "XLM-RoBERTa): quantise it without calibrating"
        )
    max_tokens = max_tokens or min(checkpoint.max_tokens, USUAL_MAX_TOKENS)
    identity = {"name": name, "base_model": base_model, "licence": licence, "max_tokens": max_tokens}
    with quietly(), folder_written_whole(out) as folder:
        write_joint_model(
            folder,
            checkpoint,
            identity=identity,
            activation=activation,
            quantise=quantise,
            quantisation_texts=quantisation_texts,
        )


def write_joint_model(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    identity: Mapping[str, Any],
    activation: str,
    quantise: bool,
    quantisation_texts: QuantisationTexts | None,
    training: Mapping[str, float] | None = None,
    notes: str = "",
) -> None:
    """Fills a folder with a cross-encoder's model: tokenizer, graph, config and card. Uses up its network.

    Args:
        folder: an empty one.
        identity: name, base_model, licence and max_tokens, for config and card.
        activation, quantise: as `import_checkpoint` takes them.
        quantisation_texts: what 8 bits are fitted to, if the network is of BERT's build.
        training: steps, and figures whose names have `_dev_`, for config and card; None: it was trained elsewhere.
        notes: see `export.export`.

    Raises:
        ModelError: the graph or its quantisation doesn't agree with the network as `check_joint_parity` demands.
    """
    save_tokenizer(checkpoint.tokenizer, folder / TOKENIZER_FILE)
    parity = _write_graph(
        folder, checkpoint, identity["max_tokens"], quantise=quantise, quantisation_texts=quantisation_texts
    )
    calibrated = quantisation_texts is not None
    card = joint_card(
        identity,
        activation=activation,
        calibrated=calibrated,
        parity=asdict(parity),
        training=training,
        notes=notes,
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    config = {
        "format_version": FORMAT_VERSION,
        **identity,
        "graph": "joint",
        "special_tokens": {"cls": checkpoint.tokenizer.cls_token, "sep": checkpoint.tokenizer.sep_token},
        "score_activation": activation,
        "calibration": None,
        "parity": asdict(parity),
    }
    write_json(folder / CONFIG_FILE, config if training is None else {**config, "training": training})
    seal(folder)


def check_joint_parity(parity: JointParity, largest_output: float) -> None:
    """Raises ModelError unless the graphs agree with the network as they must; a figure that is NaN doesn't."""
    if not parity.network_difference <= MAX_NETWORK_DIFFERENCE * max(1.0, largest_output):
        raise ModelError(
            f"the graph's outputs differ from the network's by up to {parity.network_difference:.2g}, more than "
            f"{MAX_NETWORK_DIFFERENCE}: the checkpoint is damaged, or these versions of PyTorch and transformers don't "
            "export it right"
        )
    difference = parity.quantised_difference
    if difference is not None and not difference <= MAX_QUANTISED_DIFFERENCE * parity.spread:
        raise ModelError(
            f"8 bits don't hold this network: outputs move by {difference:.4f} in the mean, more than "
            f"{MAX_QUANTISED_DIFFERENCE:.0%} of the {parity.spread:.4f} by which they vary: keep it in float32"
        )


def _write_graph(
    folder: Path,
    checkpoint: Checkpoint,
    max_tokens: int,
    *,
    quantise: bool,
    quantisation_texts: QuantisationTexts | None,
) -> JointParity:
    """Writes the graph into the folder, which has the tokenizer, and compares it. Uses up the checkpoint's network."""
    path = folder / GRAPH_FILE
    encoder = PairEncoder(folder / TOKENIZER_FILE, max_tokens)
    texts = list(_sample_pairs(encoder))
    if quantisation_texts is not None:
        texts += [pair for pair in quantisation_texts.held_out if _is_whole(encoder, *pair)]
    expected = _network_outputs(checkpoint, texts)

    if why_not_packed(checkpoint) or (quantise and quantisation_texts is None):
        export_graph(checkpoint.network, path, reads_types=checkpoint.reads_types, max_tokens=max_tokens)
    else:
        save_graph(packed_graph(bert_graph_weights(checkpoint)), path)
    exact = _graph_outputs(path, encoder, texts)
    parity = JointParity(float(np.abs(exact - expected).max()), None, float(exact.std()), len(texts))
    largest_output = float(np.abs(expected).max())
    check_joint_parity(parity, largest_output)
    if quantise:
        if quantisation_texts is None:
            quantise_graph(path)
        else:
            rows = list(rows_of(_pairs(encoder, quantisation_texts.pairs)))
            save_graph(packed_graph(with_fixed_scales(bert_graph_weights(checkpoint), observe(path, rows))), path)
        quantised = _graph_outputs(path, encoder, texts)
        parity = replace(parity, quantised_difference=float(np.abs(quantised - exact).mean()))
        check_joint_parity(parity, largest_output)
    return parity


def _network_outputs(checkpoint: Checkpoint, texts: Sequence[TextPair]) -> FloatArray:
    """What transformers gives for the pairs, by its own tokenizer, (n,)."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if checkpoint.reads_types else [])]
    outputs = []
    with torch.inference_mode():
        for instruction, candidate in texts:
            # In lists: of two bare texts, transformers would drop an empty second one.
            tokens = checkpoint.tokenizer([instruction], [candidate], return_tensors="pt")
            outputs.append(checkpoint.network(**{name: tokens[name] for name in names}).logits[0, 0].numpy())
    return np.array(outputs)


def _graph_outputs(path: Path, encoder: PairEncoder, texts: Sequence[TextPair]) -> FloatArray:
    """What the graph in a file gives for the pairs, run as the runtime runs it, (n,)."""
    return run_pairs(open_joint_session(path, available_cpus()), _pairs(encoder, texts))


def _pairs(encoder: PairEncoder, texts: Sequence[TextPair]) -> list[Pair]:
    return [encoder.pair(encoder.encode(instruction), encoder.encode(candidate)) for instruction, candidate in texts]


def _sample_pairs(encoder: PairEncoder) -> Iterator[TextPair]:
    """Pairs of many lengths, none of which is cut: with one candidate, instructions double up to what is read."""
    for instruction, first, *others in SAMPLES:
        yield from ((instruction, candidate) for candidate in others if _is_whole(encoder, instruction, candidate))
        longer = instruction
        while _is_whole(encoder, longer, first):
            yield longer, first
            longer = f"{longer} {longer}"


def _is_whole(encoder: PairEncoder, instruction: str, candidate: str) -> bool:
    lengths = len(encoder.encode(instruction)), len(encoder.encode(candidate))
    cut = encoder.cut_lengths(*lengths)
    return (cut.instruction, cut.candidate) == lengths


# An instruction, then its candidates.
SAMPLES = (
    (
        "Put the concepts together to form a sentence: ski, mountain, skier",
        "Skier skis down the mountain.",
        "A mountain.",
        "The chef cooks pasta in a small kitchen, and nobody there has ever seen snow.",
    ),
    (
        "Review: I waited two weeks for this blender, and it broke on the first day. I want my money back.\n"
        "Is this review positive or negative?",
        "negative",
        "positive",
    ),
    (
        "Passage: The river rises in the hills north of the town, passes three mills, and reaches the sea after some "
        "ninety kilometres. In dry summers its upper course disappears under ground.\n"
        "Question: Where does the river begin?",
        "In the hills north of the town",
        "At the sea",
        "After ninety kilometres, three mills and a dry summer, it begins to rise again in another country.",
        "It doesn't say.",
    ),
    (
        "Translate to French: Where is the station?",
        "Où est la gare ?",
        "Wo ist der Bahnhof?",
        "駅はどこですか。",
    ),
    (
        "Write a Python function that adds two numbers.",
        "def add(a, b):\n    return a + b",
        "def add(a, b):\n    return a - b  # 42",
        "",
    ),
)
