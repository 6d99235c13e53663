"""cappy-lite and other packages that score pairs on a CPU, each as a function that opens a folder.

Packages are imported when they are opened, so that a fresh process can time that too. Not here: `rerankers` calls
FlashRank or transformers; text-embeddings-inference and infinity are servers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

FloatArray = npt.NDArray[np.float32]
# From an instruction and candidates to scores (n,), 0..1, in the candidates' order.
Score = Callable[[str, list[str]], FloatArray]

GRAPH = "model.onnx"
# At the end of a folder's name: the same as a model folder of cappy-lite. Others take a folder with two graphs amiss.
JOINT = "-joint"
# The same for a graph alone, of ONNX's own operators, for packages that don't know ONNX Runtime's for 8 bits.
STANDARD = "-standard"
INT8, FLOAT32 = "int8", "float32"

# Nothing here may touch the network, and nobody wants to measure a telemetry thread.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@dataclass(frozen=True)
class Rival:
    """A way to score pairs.

    modules: what must be installed for it.
    twin: the folder of `twins.write_twins` that it opens.
    open: from the folder and a number of threads, None for the package's own choice.
    exact: whether it computes at the precision of the weights; else scores may be off further.
    """

    name: str
    modules: tuple[str, ...]
    twin: str
    open: Callable[[Path, int | None], Score]
    exact: bool = True

    def missing(self) -> str:
        """The first module that is not installed, or ""."""
        return next((module for module in self.modules if not _installed(module)), "")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False


def open_cappy(folder: Path, threads: int | None) -> Score:
    from cappy_lite import Scorer

    return Scorer(folder, threads=threads).score


def open_joint(folder: Path, threads: int | None) -> Score:
    return open_cappy(folder.with_name(folder.name + JOINT), threads)


def open_flashrank(folder: Path, threads: int | None) -> Score:
    """FlashRank finds models by name in tables of its own; the folder must be the name in a folder of models."""
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    model_file_map[folder.name] = GRAPH
    ranker = Ranker(folder.name, cache_dir=str(folder.parent), log_level="WARNING")
    if threads is not None:  # for which it has no option
        ranker.session = _default_session(folder / GRAPH, threads)

    def score(instruction: str, candidates: Sequence[str]) -> FloatArray:
        passages = [{"id": index, "text": text} for index, text in enumerate(candidates)]
        scores = np.empty(len(passages), np.float32)
        for passage in ranker.rerank(RerankRequest(instruction, passages)):
            scores[passage["id"]] = passage["score"]
        return scores

    return score


def _default_session(path: Path, threads: int) -> object:
    """ONNX Runtime as it is by default, but for the threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_fastembed(folder: Path, threads: int | None) -> Score:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    name = str(folder)
    if name not in {model["model"] for model in TextCrossEncoder.list_supported_models()}:
        # It must have a source, and downloads nothing where the path is given.
        TextCrossEncoder.add_custom_model(name, sources=ModelSource(hf="none/none"), model_file=GRAPH)
    encoder = TextCrossEncoder(name, threads=threads, specific_model_path=name, local_files_only=True)

    def score(instruction: str, candidates: list[str]) -> FloatArray:
        return sigmoid(np.fromiter(encoder.rerank(instruction, candidates), np.float32))

    return score


def open_sentence_transformers(kind: str, folder: Path, threads: int | None) -> Score:
    """CrossEncoder by one of its backends; kind: onnx, openvino, torch, torch-bfloat16 or torch-int8 (dynamic)."""
    from sentence_transformers import CrossEncoder

    backend, _, dtype = kind.partition("-")
    options = {
        "onnx": partial(_onnx_options, threads),
        "openvino": partial(_openvino_options, threads, folder),
        "torch": partial(_torch_options, threads, dtype),
    }[backend]()
    encoder = CrossEncoder(str(folder), backend=backend, device="cpu", model_kwargs=options, local_files_only=True)
    if dtype == "int8":
        _quantise_dynamically(encoder)

    def score(instruction: str, candidates: list[str]) -> FloatArray:
        pairs = [(instruction, candidate) for candidate in candidates]
        return np.asarray(encoder.predict(pairs, show_progress_bar=False), np.float32)

    return score


def _onnx_options(threads: int | None) -> dict[str, object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return {"file_name": GRAPH, "provider": "CPUExecutionProvider", "session_options": options}


def _openvino_options(threads: int | None, folder: Path) -> dict[str, object]:
    import openvino

    model, standard = folder / "openvino_model.xml", folder.with_name(folder.name + STANDARD) / GRAPH
    if not model.exists():
        graph = standard if standard.exists() else folder / GRAPH
        openvino.save_model(openvino.Core().read_model(str(graph)), model, compress_to_fp16=False)
    return {"file_name": model.name, "ov_config": {} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)}}


def _torch_options(threads: int | None, dtype: str) -> dict[str, object]:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return {"dtype": dtype if dtype == "bfloat16" else "float32"}


def _quantise_dynamically(encoder: CrossEncoder) -> None:
    import torch

    torch.ao.quantization.quantize_dynamic(encoder.model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def sigmoid(logits: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-logits))


SENTENCE_TRANSFORMERS = "sentence_transformers"
CAPPY = "cappy-lite"
FLASHRANK = "FlashRank"


def _sentence_transformers(name: str, kind: str, twin: str, *modules: str, exact: bool = True) -> Rival:
    opening = partial(open_sentence_transformers, kind)
    return Rival(f"sentence-transformers, {name}", (SENTENCE_TRANSFORMERS, *modules), twin, opening, exact)


RIVALS = (
    *(Rival(f"{CAPPY}, pair by pair", ("cappy_lite",), twin, open_joint) for twin in (INT8, FLOAT32)),
    *(Rival(FLASHRANK, ("flashrank",), twin, open_flashrank) for twin in (INT8, FLOAT32)),
    *(Rival("fastembed", ("fastembed",), twin, open_fastembed) for twin in (INT8, FLOAT32)),
    *(_sentence_transformers("ONNX", "onnx", twin, "optimum.onnxruntime") for twin in (INT8, FLOAT32)),
    _sentence_transformers("PyTorch", "torch", FLOAT32),
    _sentence_transformers("PyTorch in bfloat16", "torch-bfloat16", FLOAT32, exact=False),
    _sentence_transformers("PyTorch in dynamic int8", "torch-int8", FLOAT32, exact=False),
    # Where the processor multiplies bfloat16, OpenVINO does so by itself.
    *(
        _sentence_transformers("OpenVINO", "openvino", twin, "optimum.intel", "openvino", exact=False)
        for twin in (INT8, FLOAT32)
    ),
)


def why_not(rival: Rival, twins: Path, threads: int) -> str:
    """Why a rival can't be measured here, or ""; it is opened and closed."""
    if missing := rival.missing():
        return f"{missing} is not installed"
    try:
        rival.open(twins / rival.twin, threads)
    except Exception as error:  # whatever other versions of these packages may raise
        message = str(error).replace(str(twins), "").partition("\n")[0]
        return f"can't be opened: {type(error).__name__}: {message}"
    return ""


# Whose cold start and memory are measured: each by the folder that is opened.
PROCESSES = {CAPPY: open_cappy} | {f"{FLASHRANK}, {twin}": open_flashrank for twin in (INT8, FLOAT32)}
