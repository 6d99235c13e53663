"""The model that is installed with the package: complete, sensible, and as steady as is promised."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cappy_lite
from cappy_lite import Scorer
from cappy_lite.cli import main
from cappy_lite.errors import TruncationWarning
from cappy_lite.models import check_files, model_folder, read_config, shipped_models

INSTRUCTION = "Put the concepts together to form a sentence: ski, mountain, skier"
CANDIDATES = ["Skier skis down the mountain.", "A mountain.", "The chef cooks pasta."]

MEMORY = """
import resource, sys
import cappy_lite

def peak_after(candidates):
    cappy_lite.score("Name something in the snow.", [f"The skier number {i} came down." for i in range(candidates)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

print(peak_after(150), peak_after(600))
"""


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer()


def candidates(count: int) -> list[str]:
    """Different candidates of different lengths."""
    return [f"{CANDIDATES[index % 3]} {'Then it snowed again. ' * (index % 5)}{index}" for index in range(count)]


def test_the_folder_is_complete() -> None:
    assert "cappy-mini" in shipped_models()
    folder = model_folder("cappy-mini")
    config = read_config(folder)
    check_files(folder, config)
    assert (config.name, config.max_tokens, config.licence) == ("cappy-mini", 512, "Apache-2.0")
    assert {path.name for path in folder.iterdir()} == {"config.json", *config.files}
    assert set(config.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "README.md"}
    assert sum(file.size for file in config.files.values()) < 35e6


def test_its_parity_figures_are_what_an_export_demands() -> None:
    parity = json.loads((model_folder("cappy-mini") / "config.json").read_text())["parity"]
    assert parity["network_difference"] <= 1e-4
    assert parity["quantised_difference"] <= 0.015
    assert parity["same_pick"] >= 0.97


def test_the_readme_shows_what_it_gives() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    (0\.\d{3})  (\d)  (.+)$", readme, re.MULTILINE)
    ranking = cappy_lite.rerank(INSTRUCTION, CANDIDATES)
    assert [(int(index), text) for _, index, text in shown] == [(row.index, row.text) for row in ranking]
    # Another CPU may round a little otherwise.
    assert [float(score) for score, _, _ in shown] == pytest.approx([row.score for row in ranking], abs=0.01)


def test_the_best_sentence_comes_first() -> None:
    ranking = cappy_lite.rerank(INSTRUCTION, CANDIDATES)
    assert ranking[0].text == "Skier skis down the mountain."
    assert ranking[0].index == 0


@pytest.mark.parametrize(
    ("instruction", "best", "others"),
    [
        (
            "Answer the question. Tom went to the market and bought a red bicycle. What did Tom buy?",
            "A red bicycle.",
            ["Seventeen.", "The council met.", "Because of the rain."],
        ),
        (
            "Summarize: The council met on Monday and voted to build a new library near the station.",
            "The council decided to build a library by the station.",
            ["Bananas are rich in potassium.", "The match ended in a draw.", "He repaired his old motorbike."],
        ),
    ],
)
def test_an_answer_beats_what_has_nothing_to_do_with_it(
    scorer: Scorer, instruction: str, best: str, others: list[str]
) -> None:
    assert scorer.rerank(instruction, [*others, best])[0].text == best


def test_scores_are_between_0_and_1(scorer: Scorer) -> None:
    scores = scorer.score(INSTRUCTION, [*candidates(20), "", "雪", "?" * 300])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.ptp(scores) > 0.05


def test_a_score_is_the_same_alone_beside_others_and_in_any_order(scorer: Scorer) -> None:
    """To the last bit: alone, in rows of one and of several instructions, beside a kept instruction."""
    texts = candidates(150)
    together = scorer.score(INSTRUCTION, texts)
    np.testing.assert_array_equal(scorer.score(INSTRUCTION, texts[::-1])[::-1], together)
    alone = [scorer.score(INSTRUCTION, [text])[0] for text in texts[:40]]
    np.testing.assert_array_equal(alone, together[:40])
    others = ["Name a film.", INSTRUCTION, "Is it cold?"]
    np.testing.assert_array_equal(scorer.score_many(others, [texts[:3], texts[:9], []])[1], together[:9])
    with scorer.instruction(INSTRUCTION) as handle:
        kept = [handle.score(texts[start : start + 13]) for start in range(0, len(texts), 13)]
    np.testing.assert_array_equal(np.concatenate(kept), together)


def test_a_score_is_the_same_with_any_number_of_threads(scorer: Scorer) -> None:
    texts = candidates(60)
    for threads in (1, 3):
        other = Scorer(threads=threads)
        np.testing.assert_array_equal(other.score(INSTRUCTION, texts), scorer.score(INSTRUCTION, texts))


def test_long_texts_are_cut_and_scored(scorer: Scorer) -> None:
    with pytest.warns(TruncationWarning, match="the model reads 512 tokens: 1 of 2 candidates .* 1 of 1 instructions"):
        scores = scorer.score("Summarize: " + "The snow fell all day. " * 200, ["It snowed.", "It snowed. " * 300])
    assert scores[0] != scores[1]


def test_memory_does_not_grow_with_the_number_of_candidates(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())  # MB
    assert many - few < 50


def test_the_command_line_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert any(line.startswith("cappy-mini ") for line in capsys.readouterr().out.splitlines())
