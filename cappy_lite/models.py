"""Model folders: finding one, and making sure that it is what it was when it was made."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from cappy_lite.activations import ACTIVATIONS, FloatArray, ScoreCalibration, sigmoid
from cappy_lite.errors import InputTypeError, ModelError
from cappy_lite.packing import INSTRUCTION_FLOOR, SPECIAL_TOKENS

FORMAT_VERSION = 3
GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"

_SHIPPED = Path(__file__).parent / "models"
# What a config's keys may say.
_SUPPORTED: Mapping[str, Collection[str]] = {
    "graph": ("shared", "joint"),
    "score_activation": ACTIVATIONS,
    "score_position": ("last_sep",),
}
_MIN_MAX_TOKENS = SPECIAL_TOKENS + INSTRUCTION_FLOOR + 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file of the model folder must be."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The part of config.json that the runtime reads.

    graph: "shared", which reads packed rows, or "joint", which reads pairs and leaves special tokens to its tokenizer.
    score_activation: a name in ACTIVATIONS.
    calibration: what a sigmoid's logits go through before it, if anything.
    """

    name: str
    base_model: str
    licence: str
    graph: str
    score_activation: str
    calibration: ScoreCalibration | None
    max_tokens: int
    cls_token: str
    sep_token: str
    files: Mapping[str, FileDigest]

    def scores(self, outputs: FloatArray) -> FloatArray:
        """Scores of the graph's outputs, float32 of the same shape."""
        if self.calibration is not None:
            return sigmoid(self.calibration(outputs))
        return ACTIVATIONS[self.score_activation](outputs)


def shipped_models() -> list[str]:
    """Names of the models that are installed with the package, sorted."""
    if not _SHIPPED.is_dir():
        return []
    return sorted(entry.name for entry in _SHIPPED.iterdir() if entry.is_dir())


def canonical(model: str | os.PathLike[str]) -> str:
    """`model` in a form that means the same in any process and working folder: a shipped name or an absolute path.

    Raises:
        InputTypeError: `model` is neither a str nor a path.
        ModelError: there is no such model.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise InputTypeError(
            f"model must be a shipped model's name, a folder's path or an open Scorer, not {type(model).__name__}"
        )
    name = os.fspath(model)
    if name in shipped_models():
        return name
    if name.startswith("hub:"):
        raise ModelError(f"{name!r}: hub models can't be downloaded yet; download the folder and pass its path")
    folder = Path(name)
    if not name or not folder.is_dir():  # an empty path would be the working folder
        raise ModelError(
            f"unknown model {name!r}: no folder has this path, and the shipped models are: "
            f"{', '.join(shipped_models()) or 'none (reinstall cappy-lite)'}"
        )
    return str(folder.resolve())


def model_folder(model: str) -> Path:
    """The folder of a model that `canonical` returned."""
    return _SHIPPED / model if model in shipped_models() else Path(model)


def read_config(folder: Path) -> ModelConfig:
    """The checked config.json of `folder`.

    Raises:
        ModelError: it is missing, damaged, or describes a model that this version can't run.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: {_remedy(folder)}") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): {_remedy(folder)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object: {_remedy(folder)}")
    _check_supported(path, config)
    special_tokens = _value(path, config, "special_tokens", dict)
    max_tokens = _value(path, config, "max_tokens", int)
    if max_tokens < _MIN_MAX_TOKENS:
        raise ModelError(f"{path}: max_tokens is {max_tokens}; a model must read at least {_MIN_MAX_TOKENS}")
    return ModelConfig(
        name=_value(path, config, "name", str),
        base_model=_value(path, config, "base_model", str),
        licence=_value(path, config, "licence", str),
        graph=config["graph"],
        score_activation=config["score_activation"],
        calibration=_calibration(path, config),
        max_tokens=max_tokens,
        cls_token=_value(path, special_tokens, "cls", str),
        sep_token=_value(path, special_tokens, "sep", str),
        files=_digests(path, _value(path, config, "files", dict)),
    )


def check_files(folder: Path, config: ModelConfig) -> None:
    """Compares every file of the folder with its size and SHA-256 in the config.

    Raises:
        ModelError: a file is missing, truncated or altered.
    """
    for name, expected in config.files.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected.size:
                    raise ModelError(
                        f"{path} is truncated or altered: {size} bytes, not {expected.size}: {_remedy(folder)}"
                    )
                digest = _sha256(file, size)
        except FileNotFoundError:
            raise ModelError(f"{path} is missing: {_remedy(folder)}") from None
        except OSError as error:
            raise ModelError(f"{path} can't be read: {error.strerror}") from error
        if digest != expected.sha256:
            raise ModelError(f"{path} is altered (its SHA-256 differs from config.json's): {_remedy(folder)}")


@contextmanager
def files_checked(folder: Path, config: ModelConfig) -> Iterator[None]:
    """`check_files` while the block runs. Its error comes before one of the block, of which it may be the cause."""
    errors: list[BaseException] = []

    def check() -> None:
        try:
            check_files(folder, config)
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if errors:
            raise errors[0] from None


def _sha256(file: BufferedReader, size: int) -> str:
    if size == 0:  # which can't be mapped
        return hashlib.sha256().hexdigest()
    # In one piece, for which the GIL is released once.
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()


def _check_supported(path: Path, config: dict[str, Any]) -> None:
    version = _value(path, config, "format_version", int)
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format_version is {version}, and this cappy-lite reads {FORMAT_VERSION}: "
            f"{'upgrade cappy-lite' if version > FORMAT_VERSION else 'export the model again'}"
        )
    for key, supported in _SUPPORTED.items():
        # A joint graph reads its score where it likes.
        if key == "score_position" and config["graph"] == "joint":
            continue
        if _value(path, config, key, str) not in supported:
            raise ModelError(
                f"{path}: {key} is {config[key]!r}, and this cappy-lite runs only "
                f"{' and '.join(map(repr, supported))}: use such a model"
            )


def _calibration(path: Path, config: dict[str, Any]) -> ScoreCalibration | None:
    if config.get("calibration") is None:
        return None
    if config["score_activation"] != "sigmoid":
        raise ModelError(
            f"{path}: a calibration is of logits, and so needs the score_activation 'sigmoid', not "
            f"{config['score_activation']!r}: set calibration to null"
        )
    knots = _value(path, config, "calibration", dict)
    logits, calibrated = (_value(path, knots, name, list) for name in ("logits", "calibrated"))
    if not all(type(number) in (int, float) for number in (*logits, *calibrated)):
        raise ModelError(f"{path}: calibration must hold lists of numbers alone: {_remedy(path.parent)}")
    try:
        return ScoreCalibration(logits, calibrated)
    except (ValueError, OverflowError) as error:
        raise ModelError(f"{path}: calibration can't be applied ({error}): {_remedy(path.parent)}") from None


def _digests(path: Path, files: dict[str, Any]) -> dict[str, FileDigest]:
    for name in (GRAPH_FILE, TOKENIZER_FILE):
        _value(path, files, name, dict)
    for name in files:
        # A name with a folder in it could point anywhere on the disk.
        if Path(name).name != name:
            raise ModelError(f"{path}: files lists {name!r}, which is not a plain file name: {_remedy(path.parent)}")
    return {
        name: FileDigest(_value(path, entry, "bytes", int), _value(path, entry, "sha256", str))
        for name, entry in ((name, _value(path, files, name, dict)) for name in files)
    }


def _value(path: Path, config: dict[str, Any], key: str, kind: type[T]) -> T:
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelError(f"{path}: {key} must be of type {kind.__name__}, not {value!r}: {_remedy(path.parent)}")
    return value


def _remedy(folder: Path) -> str:
    if folder.parent == _SHIPPED:
        return "reinstall cappy-lite (pip install --force-reinstall --no-deps cappy-lite)"
    return "export the model again, or copy its whole folder again"
