"""A training run becomes a model folder: graph, 8-bit weights, and proof that both still say what the network says."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from tqdm import tqdm

from cappy_lite.activations import sigmoid
from cappy_lite.errors import InputValueError, ModelError
from cappy_lite.models import FORMAT_VERSION, GRAPH_FILE, TOKENIZER_FILE
from cappy_lite.packing import PackedRow
from cappy_lite.session import Session, available_cpus
from cappy_train.batches import Packer
from cappy_train.card import AVERAGED, PRETRAINED, UNTOLD, model_card
from cappy_train.evaluate import Question, dev_questions
from cappy_train.files import Source, folder_written_whole
from cappy_train.graph_builder import save_graph
from cappy_train.modern_network import ModernNetwork
from cappy_train.network import PackedNetwork
from cappy_train.quantise import observe, quantise
from cappy_train.score_calibration import calibrate
from cappy_train.shared_builds import kind_of, shared_graph, shared_weights
from cappy_train.trainable import network_scores
from cappy_train.training import LOG, graph_of, result_of, trained_state

FLOAT_GRAPH_FILE = "model.fp32.onnx"
# Where a graph's weights are that don't lie in the graph's own file.
WEIGHTS_FILE = "model.onnx.data"
CARD_FILE = "README.md"
CONFIG_FILE = "config.json"

# One dev question in this many calibrates the quantisation, and is left out of the parity check.
CALIBRATION_STEP = 20
# One in this many also goes through PyTorch, which takes the longest.
NETWORK_STEP = 20

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parity:
    """How well the model folder's graph agrees with the network, in scores (0..1) of candidates of dev questions.

    network_difference: largest difference between the network in PyTorch and the float32 graph.
    quantised_difference: mean difference between the float32 and the quantised graph; 0 if that has float32 too.
    same_pick: share of the clear questions where both graphs' best candidate is the same; clear is a question whose
        best and second score lie further apart than CLEAR_MARGIN in float32, or than CLEAR_ORDERING_MARGIN where
        scores only order.
    questions, clear_questions: how many these are of.
    """

    network_difference: float
    quantised_difference: float
    same_pick: float
    questions: int
    clear_questions: int


MAX_NETWORK_DIFFERENCE = 1e-4
MAX_QUANTISED_DIFFERENCE = 0.015
CLEAR_MARGIN = 0.02
# The same where scores only order the candidates of an instruction: what they are allowed to differ by can't be clear.
MAX_ORDERING_DIFFERENCE = 0.05
CLEAR_ORDERING_MARGIN = MAX_ORDERING_DIFFERENCE
MIN_SAME_PICK = 0.97


def export(
    run: Path,
    dev: Source,
    out: Path,
    *,
    name: str,
    base_model: str,
    licence: str,
    notes: str = "",
    float32: bool = False,
) -> None:
    """Makes the model folder `out` from a run's last checkpoint, whole or not at all.

    Beside the files of a shared model in 8 bits lies its float32 twin, which the model doesn't need (model.fp32.onnx).

    Args:
        run: folder of a training run.
        dev: files of instances, whose split dev calibrates the quantisation and proves it; of a shared model it also
            calibrates the scores, where it has enough questions (see `score_calibration.calibrate`).
        out: the folder to make; it must not exist.
        name: the model's name.
        base_model: what the run started from, in words.
        licence: under what terms the model is passed on.
        notes: what the model card says beside what is known here, such as what the network learned from: Markdown with
            headings of level 2; "" for nothing.
        float32: don't round its weights to 8 bits.

    Raises:
        InputValueError: `out` exists, a file of `run` or `dev` is missing or damaged, or `dev` has fewer than two
            questions.
        ModelError: the graph or its quantisation doesn't agree with the network as `check_parity` demands, or
            `import_checkpoint.check_joint_parity`.
    """
    if out.exists():
        raise InputValueError(f"{out} exists: give --out a new folder")
    origin = {"name": name, "base_model": base_model, "licence": licence}
    state = trained_state(run)
    training = training_figures(run)
    if graph_of(state) != PackedNetwork.graph:
        from cappy_train.joint_export import export_joint  # transformers takes seconds to load

        export_joint(
            state, run / TOKENIZER_FILE, dev, out, origin=origin, training=training, notes=notes, float32=float32
        )
        return
    network = result_of(kind_of(state["sizes"]), state)
    if isinstance(network, ModernNetwork):
        # It could read any number of tokens, and learned to score so many.
        network.config = replace(network.config, positions=state["settings"]["long"])
    questions = dev_questions(dev)
    if len(questions) < 2:
        raise InputValueError(f"{dev} has {len(questions)} questions of split dev: give two at least")
    calibrating = questions[::CALIBRATION_STEP]
    checked = [question for index, question in enumerate(questions) if index % CALIBRATION_STEP]
    losses = ", ".join(f"{name} (weight {weight:g})" for name, weight in state["settings"]["losses"].items())
    made = PRETRAINED.format(losses=losses)
    if "average_of" in state:
        made += AVERAGED.format(networks=state["average_of"])
    if not notes:
        made += UNTOLD
    with folder_written_whole(out) as folder:
        write_model(
            folder,
            network,
            run / TOKENIZER_FILE,
            calibrating,
            checked,
            identity={**origin, "max_tokens": network.max_tokens},
            training=training,
            origin=made,
            notes=notes,
            float32=float32,
        )


def write_model(
    folder: Path,
    network: PackedNetwork,
    tokenizer: Path,
    calibrating: Sequence[Question],
    checked: Sequence[Question],
    *,
    identity: Mapping[str, object],
    training: Mapping[str, float],
    origin: str,
    notes: str = "",
    only_orders: bool = False,
    float32: bool = False,
) -> None:
    """Fills a folder with a network's model: graph, 8-bit weights, float32 twin, config and card.

    Args:
        folder: an empty one.
        tokenizer: the network's tokenizer.json.
        calibrating: questions that the quantisation takes its scales from.
        checked: other ones, one at least, on which the graphs must agree with the network, and which calibrate its
            scores, unless these only order.
        identity: name, base_model, licence and max_tokens, for config and card.
        training: steps, and figures whose names have `_dev_`, for config and card.
        origin: what the network was trained on, for the card.
        notes: see `export`.
        only_orders: see `check_parity`.
        float32: don't round its weights to 8 bits: then the graph has no twin.

    Raises:
        ModelError: the graph or its quantisation doesn't agree with the network as `check_parity` demands.
    """
    packer, max_tokens = Packer(tokenizer), network.max_tokens
    weights = shared_weights(network)
    if float32:
        save_graph(shared_graph(weights), folder / GRAPH_FILE)
    else:
        onnx.save(shared_graph(weights), folder / FLOAT_GRAPH_FILE)
        rows = [row for question in calibrating for row in packed_rows(packer, question, max_tokens)]
        save_graph(shared_graph(quantise(weights, observe(folder / FLOAT_GRAPH_FILE, rows))), folder / GRAPH_FILE)

    logits = graph_logits(folder / GRAPH_FILE, packer, checked, max_tokens)
    exact = logits if float32 else graph_logits(folder / FLOAT_GRAPH_FILE, packer, checked, max_tokens)
    through_network = [(question.instruction, question.candidates) for question in checked[::NETWORK_STEP]]
    network_part = network_scores(network, packer, through_network, max_tokens)
    with np.errstate(invalid="ignore"):  # a damaged network gives NaN, and `check_parity` says so
        margin = CLEAR_ORDERING_MARGIN if only_orders else CLEAR_MARGIN
        scores, exact_scores = ([sigmoid(own) for own in each] for each in (logits, exact))
        parity = measure_parity(network_part, exact_scores, scores, margin=margin)
    check_parity(parity, only_orders=only_orders or float32)
    calibrated = None if only_orders else calibrate(checked, logits)

    shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
    proof = None if calibrated is None else asdict(calibrated.proof)
    card = model_card(
        identity,
        build=network.build,
        layers=network.config.layers,
        float32=float32,
        training=training,
        parity=asdict(parity),
        calibration_proof=proof,
        origin=origin,
        notes=notes,
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    config = {
        "format_version": FORMAT_VERSION,
        **identity,
        "graph": "shared",
        "special_tokens": {"cls": packer.cls_token, "sep": packer.sep_token},
        "score_activation": "sigmoid",
        "score_position": "last_sep",
        "calibration": None if calibrated is None else calibrated.knots,
        "calibration_proof": proof,
        "parity": asdict(parity),
        "training": training,
    }
    write_json(folder / CONFIG_FILE, config)
    seal(folder)


def seal(folder: Path) -> None:
    """Writes the digests of a model folder's files into its config, as after a change of the model card by hand."""
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["files"] = {
        name: _digest(folder / name)
        for name in (GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE, CARD_FILE)
        if (folder / name).exists()
    }
    write_json(path, config)


def packed_rows(packer: Packer, question: Question, max_tokens: int) -> list[PackedRow]:
    """The rows that hold a question's instruction and candidates."""
    candidates = [packer.encode(candidate) for candidate in question.candidates]
    return list(packer.pack(packer.encode(question.instruction), candidates, max_tokens))


def graph_logits(graph: Path, packer: Packer, questions: Sequence[Question], max_tokens: int) -> list[FloatArray]:
    """Logits (float32) of each question's candidates, by the graph in a file, run as the runtime runs it."""
    session = Session(graph, available_cpus())
    logits = []
    for question in tqdm(questions, graph.name, unit="question"):
        own = np.empty(len(question.candidates), dtype=np.float32)
        for row in packed_rows(packer, question, max_tokens):
            own[row.candidate_indices] = session.run(row)
        logits.append(own)
    return logits


def measure_parity(
    network_part: Sequence[FloatArray],
    float_scores: Sequence[FloatArray],
    quantised_scores: Sequence[FloatArray],
    *,
    margin: float = CLEAR_MARGIN,
) -> Parity:
    """Compares scores of the same questions; `network_part` has those of one question in NETWORK_STEP.

    margin: how far apart a clear question's best and second score are, at least.
    """
    network_differences = np.concatenate(network_part) - np.concatenate(float_scores[::NETWORK_STEP])
    quantised_differences = np.concatenate(quantised_scores) - np.concatenate(float_scores)
    same = [
        quantised.argmax() == exact.argmax()
        for exact, quantised in zip(float_scores, quantised_scores, strict=True)
        if _margin(exact) > margin
    ]
    return Parity(
        network_difference=float(np.abs(network_differences).max()),
        quantised_difference=float(np.abs(quantised_differences).mean()),
        same_pick=float(np.mean(same)) if same else math.nan,
        questions=len(float_scores),
        clear_questions=len(same),
    )


def check_parity(parity: Parity, *, only_orders: bool = False) -> None:
    """Raises ModelError unless the graphs agree with the network as they must; a figure that is NaN doesn't.

    only_orders: scores order the candidates of an instruction, and mean no more. They may differ by more then, and
        there may be few clear questions, or none: so picks that change are allowed two standard deviations of chance.
    """
    if not parity.network_difference <= MAX_NETWORK_DIFFERENCE:
        raise ModelError(
            f"the float32 graph's scores differ from the network's by up to {parity.network_difference:.2g}, more than "
            f"{MAX_NETWORK_DIFFERENCE}: the checkpoint is damaged, or the graph no longer follows the network"
        )
    most = MAX_ORDERING_DIFFERENCE if only_orders else MAX_QUANTISED_DIFFERENCE
    least = MIN_SAME_PICK
    if only_orders and parity.clear_questions:
        least -= 2 * math.sqrt(MIN_SAME_PICK * (1 - MIN_SAME_PICK) / parity.clear_questions)
    same = parity.same_pick >= least or (only_orders and not parity.clear_questions)
    if not (parity.quantised_difference <= most and same):
        remedy = "adapt a model in float32" if only_orders else "export it in float32 (--float32)"
        raise ModelError(
            f"8 bits don't hold this network: scores differ by {parity.quantised_difference:.4f} in the mean (at most "
            f"{most} is allowed), and {parity.same_pick:.1%} of {parity.clear_questions} clear "
            f"questions keep their best candidate (at least {least:.1%}): train longer, or at a lower rate, or "
            f"{remedy}"
        )


def training_figures(run: Path) -> dict[str, float]:
    """The steps of a run, and the last loss and dev figures in its log.

    Raises:
        InputValueError: the folder has no log.
    """
    path = run / LOG
    if not path.exists():
        raise InputValueError(f"{path} is missing: give the --out folder of a training run")
    last: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        last |= json.loads(line)
    return {"steps": last["step"]} | {key: value for key, value in last.items() if key == "loss" or "_dev_" in key}


def _margin(scores: FloatArray) -> float:
    """How far the best score is from the second; 0 where there is no second."""
    ordered = np.sort(scores)
    return float(ordered[-1] - ordered[-2]) if len(scores) > 1 else 0.0


def _digest(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def write_json(path: Path, value: object) -> None:
    """Writes JSON for people to read as well."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
