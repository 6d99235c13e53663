"""The evaluation of model folders: every figure of its tables again, by other means, and the files that it writes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rouge_score.rouge_scorer import RougeScorer
from tiny_model import write_config, write_tiny_model
from tiny_training import write_tiny_bert

from cappy_lite import Scorer
from cappy_lite.errors import InputTypeError, InputValueError, ModelError
from cappy_train import evaluate as evaluate_module
from cappy_train import evaluation
from cappy_train.cli import main
from cappy_train.evaluate import bootstrap, choice_questions
from cappy_train.evaluation import evaluate
from cappy_train.instances import Candidate, Instance, write_instances
from cappy_train.neighbours import rouge_words

ANIMALS = ("dog", "cat", "car", "house", "film", "chef", "child")
DECODINGS = ("beam", "sampling", "sampling", "top-k", "top-k")


@pytest.fixture(autouse=True)
def _small_minilm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published MiniLM is large; a BERT with random weights goes the same way."""
    folder = write_tiny_bert(tmp_path_factory.mktemp("bert"))
    monkeypatch.setattr(evaluation, "packaged_minilm", lambda: folder)


def sampled(number: int, *, task: str = "describe", template: str = "a", silent: str | None = None) -> Instance:
    """An instance with the samples of three decodings, but for those of `silent`, and their likelihoods."""
    rng = np.random.default_rng(number)
    texts = [f"the {' '.join(rng.choice(ANIMALS, size=3))} runs" for _ in DECODINGS]
    texts[2] = texts[1]  # a repetition
    candidates = tuple(
        Candidate(text, source, float(value), float(value / (place + 2)))
        for place, (text, source, value) in enumerate(zip(texts, DECODINGS, -rng.random(5) * 9, strict=True))
        if source != silent
    )
    references = (f"a {ANIMALS[number % 7]} is running", texts[0] if number % 3 else "the snow")
    return Instance(
        f"{task}:{number}:{template}", task, template, f"write of {number}", references, candidates, None, "test"
    )


def mixed() -> list[Instance]:
    """All kinds of instances, in several tasks and templates."""
    yes_no = [
        Instance(
            f"yes:{number}:{template}",
            "yes_no",
            template,
            f"is {number} good {template}",
            (right,),
            (),
            ("yes", "no"),
            "test",
        )
        for number, right in enumerate(["yes", "no", "no", "yes", "no"])
        for template in ("ask", "tell")
    ]
    letters = [
        Instance(
            f"letter:{number}", "letter", None, f"which {number}", ("(B)",), recorded, ("(A)", "(B)", "(C)"), "test"
        )
        for number, recorded in enumerate([(Candidate(" (b) ", "beam", -1, -1), Candidate("A", "top-k", -2, -2)), ()])
    ]
    generation = [sampled(number) for number in range(6)]
    generation += [sampled(number, template="b") for number in range(6, 8)]
    generation += [sampled(9, task="tell"), sampled(10, task="tell", silent="beam")]
    open_ended = [
        Instance(f"copy:{animal}", "copy", None, f"copy the word {animal}", (f"the {animal}",), (), None, "test")
        for animal in ANIMALS
    ]
    elsewhere = [Instance("train", "yes_no", "ask", "is it", ("yes",), (), ("yes", "no"), "train")]
    return [*generation, *yes_no, *elsewhere, *letters, *open_ended]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.jsonl.gz"
    write_instances(path, mixed())
    return path


def t0_mean(values: Sequence[tuple[Instance, float]]) -> float:
    """Over the questions of a template, then a task's templates, then tasks."""
    by_template: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    for instance, value in values:
        by_template[instance.task, instance.template].append(value)
    by_task: dict[str, list[float]] = defaultdict(list)
    for (task, _), own in by_template.items():
        by_task[task].append(mean(own))
    return mean(map(mean, by_task.values()))


def gain(instance: Instance, text: str) -> float:
    """What a recorded response is worth, by the rouge-score package."""
    plain = " ".join(text.lower().split())
    if instance.choices is not None:
        return float(plain in [reference.lower() for reference in instance.references])
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    return max(rouge.score(reference, text)["rougeL"].fmeasure for reference in instance.references)


def averages(section: dict[str, Any]) -> dict[str, float]:
    return {method["name"]: method["average"]["value"] for method in section["methods"]}


def first_best(texts: Sequence[str], key: Callable[[str], float]) -> str:
    return max(texts, key=key)  # of equal ones the first


def test_the_generation_table_is_right(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    section = evaluate([tiny_model], data, tmp_path / "out")["sections"]["generation"]
    recorded = [one for one in mixed() if one.candidates]
    scorer = Scorer(tiny_model)

    def picks(pick: Callable[[Instance], Candidate]) -> float:
        return t0_mean([(one, gain(one, pick(one).text)) for one in recorded])

    def by_text(key: Callable[[Instance, str], float]) -> float:
        return picks(lambda one: max(one.candidates, key=lambda candidate: key(one, candidate.text)))

    def agreement(one: Instance, text: str) -> float:
        rouge = RougeScorer(["rougeL"], use_stemmer=True)
        texts = [candidate.text for candidate in one.candidates]
        texts.remove(text)
        return round(sum(rouge.score(text, other)["rougeL"].fmeasure for other in texts), 9)

    def overlap(one: Instance, text: str) -> float:
        words = rouge_words(text)
        return len(words & rouge_words(one.instruction)) / len(words)

    expected = {
        "tiny": by_text(lambda one, text: float(scorer.score(one.instruction, [text])[0])),
        "sampling": t0_mean([(one, gain(one, one.candidates[1].text)) for one in recorded if one.task == "describe"]),
        "self-score, sum": picks(lambda one: max(one.candidates, key=lambda candidate: candidate.log_likelihood or 0)),
        "self-score, mean": picks(
            lambda one: max(one.candidates, key=lambda candidate: candidate.mean_log_likelihood or 0)
        ),
        "consensus": by_text(agreement),
        "longest": by_text(lambda _, text: len(text)),
        "word overlap": by_text(overlap),
        "random": t0_mean([(one, mean(gain(one, candidate.text) for candidate in one.candidates)) for one in recorded]),
        "oracle": by_text(gain),
    }
    found = averages(section)
    sampling = next(method for method in section["methods"] if method["name"] == "sampling")
    found["sampling"] = sampling["tasks"]["describe"]["value"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert section["questions"] == len(recorded) == 11
    assert [(method["kind"], method["name"]) for method in section["methods"]] == [
        ("model", "tiny"),
        *(("system", name) for name in ("beam", "sampling", "top-k")),
        *(("rule", name) for name in ("self-score, sum", "self-score, mean", "consensus", "longest", "word overlap")),
        ("rule", "MiniLM cosine"),
        ("bound", "random"),
        ("bound", "oracle"),
    ]


def test_a_system_is_judged_where_it_answers(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    section = evaluate([tiny_model], data, tmp_path / "out")["sections"]["generation"]
    beam = next(method for method in section["methods"] if method["name"] == "beam")
    recorded = [one for one in mixed() if one.candidates]
    gains = [
        (one, mean(gain(one, candidate.text) for candidate in one.candidates if candidate.source == "beam"))
        for one in recorded
        if one.id != "tell:10:a"
    ]
    assert beam["answered"] == 10
    assert beam["average"]["value"] == pytest.approx(t0_mean(gains), abs=1e-5)
    everywhere = [*gains, (next(one for one in recorded if one.id == "tell:10:a"), 0.0)]
    assert beam["zero_where_missing"]["value"] == pytest.approx(t0_mean(everywhere), abs=1e-5)
    scorer = Scorer(tiny_model)

    def pick(one: Instance) -> str:
        return first_best(
            [c.text for c in one.candidates], lambda text: float(scorer.score(one.instruction, [text])[0])
        )

    model = t0_mean([(one, gain(one, pick(one))) for one, _ in gains])
    assert beam["ahead"]["tiny"]["value"] == pytest.approx(model - t0_mean(gains), abs=2e-5)
    assert all("zero_where_missing" not in one for one in section["methods"] if one["answered"] == 11)


def test_the_classification_table_is_right(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    section = evaluate([tiny_model], data, tmp_path / "out")["sections"]["classification"]
    instances = [one for one in mixed() if one.choices and one.split == "test"]
    scorer = Scorer(tiny_model)
    right = [
        (one, float(one.choices[int(scorer.score(one.instruction, one.choices).argmax())] in one.references))
        for one in instances
        if one.choices
    ]
    found = averages(section)
    assert found["tiny"] == pytest.approx(t0_mean(right), abs=1e-5)
    assert found["random"] == pytest.approx(mean([0.5, 1 / 3]), abs=1e-5)
    assert found["majority class"] == pytest.approx(mean([0.6, 1]))
    assert found["oracle"] == 1
    assert section["questions_by_task"] == {"letter": 2, "yes_no": 10}
    assert section["best_of"] is None
    assert section["reliability"]["tiny"]["candidates"] == 10 * 2 + 2 * 3
    assert section["reliability"]["tiny"]["right"] == 12


def test_the_means_of_a_tasks_templates_are_right(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    sections = evaluate([tiny_model], data, tmp_path / "out")["sections"]
    scorer = Scorer(tiny_model)
    asked: dict[str, list[float]] = {"ask": [], "tell": []}
    for one in mixed():
        if one.task == "yes_no" and one.split == "test":
            pick = ("yes", "no")[int(scorer.score(one.instruction, ["yes", "no"]).argmax())]
            asked[str(one.template)].append(float(pick in one.references))
    means = {template: mean(values) for template, values in asked.items()}
    model = sections["classification"]["methods"][0]
    assert model["templates"] == {"yes_no": pytest.approx(means)}  # letter has one template
    assert model["tasks"]["yes_no"]["value"] == pytest.approx(mean(means.values()))
    # Two templates of a task; the other has one.
    for method in sections["generation"]["methods"]:
        assert list(method["templates"]) == ["describe"]
        assert mean(method["templates"]["describe"].values()) == pytest.approx(
            method["tasks"]["describe"]["value"], abs=2e-5
        )
    assert not any(method["templates"] for method in sections["distractors"]["methods"])
    low, high = (f"{round(100 * value, 1):.1f}" for value in (min(means.values()), max(means.values())))
    (line,) = [
        line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if line.startswith("| yes_no | 2 |")
    ]
    assert line.startswith(f"| yes_no | 2 | {low} to {high} |")


def test_distractors_are_for_instances_with_neither(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    section = evaluate([tiny_model], data, tmp_path / "out")["sections"]["distractors"]
    assert section["questions_by_task"] == {"copy": 7}
    assert averages(section)["word overlap"] == pytest.approx(1)


def test_curves_go_from_random_to_the_pick_of_all(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    section = evaluate([tiny_model], data, tmp_path / "out")["sections"]["generation"]
    best_of, found = section["best_of"], averages(section)
    assert best_of["sizes"] == [1, 2, 4, 5]
    assert best_of["questions_with_so_many"] == [11, 11, 10, 9]
    names = ["tiny", "self-score, sum", "self-score, mean", "consensus", "oracle"]
    assert [curve["name"] for curve in best_of["curves"]] == names
    for curve in best_of["curves"]:
        values = [one["value"] for one in curve["values"]]
        assert values[0] == pytest.approx(found["random"], abs=2e-5)
        assert values[-1] == pytest.approx(found[curve["name"]], abs=2e-5)


def test_a_task_with_a_single_example_has_no_interval_but_averages_have(tiny_model: Path, tmp_path: Path) -> None:
    several = [sampled(number) for number in range(4)]
    write_instances(tmp_path / "several.jsonl", several)
    section = evaluate([tiny_model], tmp_path / "several.jsonl", tmp_path / "several")["sections"]["generation"]
    for curve in section["best_of"]["curves"]:
        assert all(one["low"] <= one["value"] <= one["high"] for one in curve["values"])
    write_instances(tmp_path / "in.jsonl", [*several, sampled(9, task="alone")])
    section = evaluate([tiny_model], tmp_path / "in.jsonl", tmp_path / "out")["sections"]["generation"]
    model = section["methods"][0]
    assert model["tasks"]["describe"]["low"] < model["tasks"]["describe"]["high"]
    assert model["tasks"]["alone"]["low"] is model["tasks"]["alone"]["high"] is None
    assert np.isfinite(model["tasks"]["alone"]["value"])
    consensus = next(method for method in section["methods"] if method["name"] == "consensus")
    assert consensus["ahead_by_task"]["tiny"]["alone"]["low"] is None
    reliability = section["reliability"]["tiny"]
    for estimate in (
        model["average"],
        model["closed"],
        consensus["ahead"]["tiny"],
        section["best_of"]["curves"][0]["values"][0],
        reliability["calibration_error"],
        reliability["score_length"],
    ):
        assert None not in estimate.values()
    assert model["average"]["low"] < model["average"]["value"] < model["average"]["high"]
    write_instances(tmp_path / "one.jsonl", [sampled(9, task="alone")])
    model = evaluate([tiny_model], tmp_path / "one.jsonl", tmp_path / "one")["sections"]["generation"]["methods"][0]
    for report in ("report.md", "report.html"):
        assert f"{100 * model['average']['value']:.1f} [n/a]" in (tmp_path / "one" / report).read_text(encoding="utf-8")


def test_self_scores_need_likelihoods(tiny_model: Path, tmp_path: Path) -> None:
    known = sampled(1)
    silent = Instance(
        "s", "describe", "a", "write", ("a dog",), (Candidate("a dog", "x"), Candidate("a", "x")), None, "test"
    )
    partly = (Candidate("a cat", "x", -5.0), Candidate("a dog", "x"), Candidate("snow", "x", -7.0))
    some = Instance("p", "describe", "a", "write it", ("a dog",), partly, None, "test")
    write_instances(tmp_path / "some.jsonl", [known, silent, some])
    section = evaluate([tiny_model], tmp_path / "some.jsonl", tmp_path / "out")["sections"]["generation"]
    by_name = {method["name"]: method for method in section["methods"]}
    assert by_name["self-score, sum"]["answered"] == 2
    assert by_name["self-score, mean"]["answered"] == 1
    most_likely = max(known.candidates, key=lambda candidate: candidate.log_likelihood or 0)
    expected = mean([gain(known, most_likely.text), gain(some, "a cat")])
    assert by_name["self-score, sum"]["average"]["value"] == pytest.approx(expected, abs=1e-5)
    assert [curve["name"] for curve in section["best_of"]["curves"]] == ["tiny", "consensus", "oracle"]
    write_instances(tmp_path / "none.jsonl", [silent])
    section = evaluate([tiny_model], tmp_path / "none.jsonl", tmp_path / "none")["sections"]["generation"]
    assert "self-score, sum" not in averages(section)


def test_models_stand_beside_each_other(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=5)
    report = evaluate([other, tiny_model], data, tmp_path / "out", limit=6)
    assert [model["name"] for model in report["models"]] == ["other", "tiny"]
    section = report["sections"]["generation"]
    assert section["questions"] == 6
    first, second = section["methods"][:2]
    assert (first["name"], second["name"]) == ("other", "tiny")
    assert second["ahead"]["other"]["value"] == pytest.approx(
        first["average"]["value"] - second["average"]["value"], abs=2e-5
    )
    assert second["ahead"]["tiny"]["value"] == 0
    assert set(section["reliability"]) == {"other", "tiny"}


def test_the_report_is_the_same_again(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate([tiny_model], data, tmp_path / name)
    for file in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


# The page


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def test_the_page_has_the_figures_and_needs_nothing_else(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=5)
    report = evaluate([tiny_model, other], data, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    for outside in ("http:", "https:", "//", "url(", "@import", "src=", "href=", "<script"):
        assert outside not in page, outside
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    policy = next(one for one in root.iter("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.get("content", "").startswith("default-src 'none'")

    rows = [[text_of(cell) for cell in row] for row in root.iter("tr")]
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for section in report["sections"].values():
        for method in section["methods"]:
            numbers = (method["average"][key] for key in ("value", "low", "high"))
            value, low, high = ("n/a" if one is None else f"{round(100 * one, 1) + 0:.1f}" for one in numbers)
            shown = value if value == low == high else f"{value} [n/a]" if low == "n/a" else f"{value} [{low}, {high}]"
            name = f"{method['name']} (system)" if method["kind"] == "system" else method["name"]
            assert any(row[0] == name and shown in row for row in rows), (name, shown)
            assert any(line.startswith(f"| {name} |") and f"| {shown} |" in line for line in markdown.splitlines())
        for task in section["questions_by_task"]:
            values = [
                f"{100 * one['tasks'][task]['value']:.1f}" if task in one["tasks"] else "" for one in section["methods"]
            ]
            assert [task, str(section["questions_by_task"][task]), *values] in rows
        for curve in (section["best_of"] or {"curves": []})["curves"]:
            assert any(
                row[0] == curve["name"] and row[-1].startswith(f"{100 * curve['values'][-1]['value']:.1f}")
                for row in rows
            )

    plots = [one for one in root.iter("svg") if one.get("role") == "img"]
    # By task, calibration and two models' distributions in each of three sections, and best of n in one.
    assert len(plots) == 3 * 4 + 1
    assert all(plot[0].tag == "title" and plot[0].text == plot.get("aria-label") for plot in plots)
    assert all(cell.get("scope") in {"row", "col"} for cell in root.iter("th"))
    assert all(table.get("aria-label") for table in root.iter("table"))


def test_names_are_no_markup(tiny_model: Path, tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script>|&"\x07'
    candidates = (Candidate("a dog", hostile), Candidate("a cat", "random"))
    write_instances(tmp_path / "x.jsonl", [Instance("a", hostile, None, "say", ("a dog",), candidates, None, "test")])
    evaluate([tiny_model], tmp_path / "x.jsonl", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    shown = hostile.replace("\x07", "\N{REPLACEMENT CHARACTER}")
    names = [text_of(row[0]) for row in root.iter("tr")]
    assert f"{shown} (system)" in names
    assert "random (system)" in names
    assert "random" in names
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert len({line.replace("\\|", "").count("|") for line in markdown.splitlines() if "(system)" in line}) <= 2


# What goes wrong


def test_what_cannot_be_evaluated_is_refused(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputValueError, match=r"no instance of split 'dev' makes a question in .*mixed\.jsonl\.gz"):
        evaluate([tiny_model], data, out, split="dev")
    with pytest.raises(InputValueError, match="split is 'all'"):
        evaluate([tiny_model], data, out, split="all")
    with pytest.raises(ModelError, match="unknown model"):
        evaluate(["no-such-model"], data, out)
    with pytest.raises(InputValueError, match="no model is named"):
        evaluate([], data, out)
    with pytest.raises(InputTypeError, match="models must be a list"):
        evaluate("cappy-mini", data, out)
    with pytest.raises(InputValueError, match="named twice"):
        evaluate([tiny_model, tiny_model], data, out)
    with pytest.raises(InputValueError, match="limit is 0"):
        evaluate([tiny_model], data, out, limit=0)
    with pytest.raises(InputValueError, match="no such file"):
        evaluate([tiny_model], tmp_path / "none.jsonl", out)
    with pytest.raises(InputValueError, match="can't be written"):
        evaluate([tiny_model], data, data / "out")  # below a file
    assert not out.exists()
    out.mkdir()
    with pytest.raises(InputValueError, match="out exists"):
        evaluate(["no-such-model"], data, out)
    assert not list(out.iterdir())


def test_scores_that_are_no_numbers_are_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "broken")
    model = onnx.load(folder / "model.onnx")
    head = next(one for one in model.graph.initializer if one.name == "head")
    head.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(head), np.nan), "head"))
    onnx.save(model, folder / "model.onnx")
    write_config(folder)
    with pytest.warns(RuntimeWarning, match="invalid value"), pytest.raises(InputValueError, match="finite"):
        evaluate([folder], data, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"mixed.jsonl.gz", "broken"}


def test_models_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, data: Path) -> None:
    folders = [write_tiny_model(tmp_path / name / "model", seed=seed) for seed, name in enumerate(["a", "b"])]
    report = evaluate(folders, data, tmp_path / "out", limit=3)
    assert [model["name"] for model in report["models"]] == list(map(str, folders))


def test_the_command_prints_averages_and_writes_the_folder(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", "--model", str(tiny_model), "--data", str(data), "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert [line for line in printed.out.splitlines() if line.startswith("| tiny |")]
    assert "report.html" in printed.err
    assert main(command) == 1
    assert "out exists" in capsys.readouterr().err


def test_resampling_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = choice_questions(mixed())
    gains = np.random.default_rng(0).random((2, len(questions)))
    whole = bootstrap(questions, gains)
    monkeypatch.setattr(evaluate_module, "DRAWS", 33)
    parts = bootstrap(questions, gains)
    assert parts.tasks == pytest.approx(whole.tasks)
    assert parts.averages == pytest.approx(whole.averages)
