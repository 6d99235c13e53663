"""Model folders: what is wrong with one is said, with the file's name and the fix, before anything is scored."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_model import write_config, write_tiny_model

from cappy_lite import Scorer
from cappy_lite.errors import CappyError, ModelError
from cappy_lite.models import canonical, check_files, model_folder, read_config, shipped_models

REMEDY = "export the model again, or copy its whole folder again"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return shutil.copytree(tiny_model, tmp_path / "damaged")


def error_of(folder: Path) -> str:
    """What opening the folder raises, on one line."""
    with pytest.raises(ModelError) as caught:
        Scorer(folder)
    assert isinstance(caught.value, (CappyError, ValueError))
    return str(caught.value)


def test_a_sound_folder_is_read(tiny_model: Path) -> None:
    config = read_config(tiny_model)
    assert (config.name, config.max_tokens, config.cls_token, config.sep_token) == ("tiny", 160, "[CLS]", "[SEP]")
    assert set(config.files) == {"model.onnx", "tokenizer.json", "README.md"}
    check_files(tiny_model, config)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "README.md"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert error_of(folder) == f"{folder / name} is missing: {REMEDY}"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "README.md"])
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    assert error_of(folder) == f"{path} is truncated or altered: {size - 7} bytes, not {size}: {REMEDY}"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "README.md"])
def test_an_altered_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert error_of(folder) == f"{path} is altered (its SHA-256 differs from config.json's): {REMEDY}"


def test_a_folder_in_a_files_place_is_named(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    assert f"{folder / 'README.md'} can't be read" in error_of(folder)


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert error_of(folder) == f"{folder / 'config.json'} is missing: {REMEDY}"


@pytest.mark.parametrize("text", ["", '{"format_version": 1, ', "\x00", "not json"])
def test_a_config_that_is_not_json_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    message = error_of(folder)
    assert f"{folder / 'config.json'} is not JSON (" in message
    assert REMEDY in message


def test_a_config_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"name": "\xff\xfe"}')
    assert "config.json is not JSON (" in error_of(folder)


def test_a_config_that_is_no_object_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    assert error_of(folder) == f"{folder / 'config.json'} must hold a JSON object: {REMEDY}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 4, "format_version is 4, and this cappy-lite reads 3: upgrade cappy-lite"),
        ("format_version", 2, "format_version is 2, and this cappy-lite reads 3: export the model again"),
        ("format_version", "2", "format_version must be of type int, not '2'"),
        ("format_version", True, "format_version must be of type int, not True"),
        ("graph", "late", "graph is 'late', and this cappy-lite runs only 'shared' and 'joint'"),
        (
            "score_activation",
            "tanh",
            "score_activation is 'tanh', and this cappy-lite runs only 'sigmoid' and 'identity'",
        ),
        ("score_position", "cls", "score_position is 'cls', and this cappy-lite runs only 'last_sep'"),
        ("calibration", [1], "calibration must be of type dict, not [1]"),
        ("calibration", {"a": 1}, "logits must be of type list, not None"),
        ("calibration", {"logits": [0, 1], "calibrated": 1}, "calibrated must be of type list, not 1"),
        ("calibration", {"logits": [0, 1], "calibrated": ["0", 1]}, "calibration must hold lists of numbers alone"),
        ("calibration", {"logits": [0, True], "calibrated": [0, 1]}, "calibration must hold lists of numbers alone"),
        (
            "calibration",
            {"logits": [0, 1, 2], "calibrated": [0, 1]},
            "calibration can't be applied (3 logits and 2 calibrated ones: give as many, two at least)",
        ),
        ("calibration", {"logits": [0], "calibrated": [0]}, "calibration can't be applied (1 logits and 1 calibrated"),
        *(
            (
                "calibration",
                {"logits": logits, "calibrated": calibrated},
                "calibration can't be applied (logits and calibrated must each be finite and strictly increasing)",
            )
            for logits, calibrated in (
                ([0, 0], [0, 1]),
                ([0, 1], [1, 1]),
                ([1, 0], [1, 0]),
                ([0, 1, 0.5], [0, 1, 2]),
                ([0, math.inf], [0, 1]),
                ([0, 1], [0, math.nan]),
                ([-math.inf, 1], [-math.inf, 1]),
                ([0, 1e-310], [0, 1e10]),
                ([-1e308, 1e308], [0, 1]),
            )
        ),
        ("calibration", {"logits": [0, 10**400], "calibrated": [0, 1]}, "calibration can't be applied (int too large"),
        ("name", None, "name must be of type str, not None"),
        ("max_tokens", 131, "max_tokens is 131; a model must read at least 132"),
        ("max_tokens", 512.0, "max_tokens must be of type int, not 512.0"),
        ("special_tokens", "[CLS]", "special_tokens must be of type dict"),
        ("special_tokens", {"cls": "[CLS]"}, "sep must be of type str, not None"),
        ("licence", 2, "licence must be of type str, not 2"),
        ("base_model", [], "base_model must be of type str, not []"),
        ("files", [], "files must be of type dict, not []"),
        ("files", {}, "model.onnx must be of type dict, not None"),
        ("files", {"model.onnx": {"bytes": 1, "sha256": ""}}, "tokenizer.json must be of type dict, not None"),
        (
            "files",
            {"model.onnx": {"bytes": 1}, "tokenizer.json": {"bytes": 1, "sha256": ""}},
            "sha256 must be of type str, not None",
        ),
        (
            "files",
            {name: {"bytes": 1, "sha256": ""} for name in ("model.onnx", "tokenizer.json", "../secret")},
            "files lists '../secret', which is not a plain file name",
        ),
    ],
)
def test_a_config_that_cannot_be_used_is_explained(folder: Path, key: str, value: object, message: str) -> None:
    write_config(folder, **{key: value})
    found = error_of(folder)
    assert f"{folder / 'config.json'}: {message}" in found
    assert "\n" not in found


def test_a_missing_key_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["max_tokens"]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"{folder / 'config.json'}: max_tokens must be of type int, not None: {REMEDY}" in error_of(folder)


def test_a_graph_that_is_no_graph_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "model.onnx").write_bytes(b"not a graph")
    write_config(folder)
    assert f"{folder / 'model.onnx'} can't be opened by ONNX Runtime" in error_of(folder)
    assert capfd.readouterr() == ("", "")


def test_a_graph_with_other_inputs_is_named(folder: Path) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens"])
    graph = helper.make_graph([helper.make_node("Cast", ["input_ids"], ["logits"], to=1)], "joint", [ids], [logits])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "model.onnx")
    write_config(folder)
    message = error_of(folder)
    assert f"{folder / 'model.onnx'} doesn't read packed rows: it must read input_ids, position_ids," in message
    assert "but reads input_ids tensor(int64): export the model again" in message


def test_a_graph_without_logits_is_named(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    onnx.save(model, folder / "model.onnx")
    write_config(folder)
    assert "and give logits (float32)" in error_of(folder)


def test_a_tokenizer_that_is_none_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    write_config(folder)
    assert f"{folder / 'tokenizer.json'} is not a tokenizer that" in error_of(folder)


def test_a_special_token_that_the_tokenizer_lacks_is_named(folder: Path) -> None:
    write_config(folder, special_tokens={"cls": "<s>", "sep": "[SEP]"})
    assert f"{folder / 'tokenizer.json'} has no token '<s>'" in error_of(folder)


# Names


def test_an_unknown_model_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Scorer("no-such-model")
    message = str(caught.value)
    assert message.startswith("unknown model 'no-such-model': no folder has this path, and the shipped models are: ")
    assert all(name in message for name in shipped_models())
    with pytest.raises(ModelError, match="unknown model"):
        Scorer(tmp_path / "nothing")
    with pytest.raises(ModelError, match="unknown model ''"):
        Scorer("")


def test_a_file_is_not_a_model(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown model .*no folder has this path"):
        Scorer(tiny_model / "model.onnx")


def test_hub_models_are_not_downloaded() -> None:
    with pytest.raises(ModelError) as caught:
        Scorer("hub:owner/name")
    assert "download the folder and pass its path" in str(caught.value)


def test_a_path_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names = {canonical(model) for model in ("tiny", "./tiny/", Path("tiny"), folder, "link")}
    assert names == {str(folder.resolve())}
    assert model_folder(names.pop()) == folder.resolve()


def test_a_calibration_without_a_sigmoid_is_refused(folder: Path) -> None:
    write_config(
        folder, graph="joint", score_activation="identity", calibration={"logits": [0, 1], "calibrated": [0, 1]}
    )
    assert (
        f"{folder / 'config.json'}: a calibration is of logits, and so needs the score_activation 'sigmoid', not "
        "'identity': set calibration to null"
    ) in error_of(folder)
