"""The benchmark of adaptation to recorded outputs: its data, its judgements, and a run of it in miniature."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_scorer import write_tiny_scorer

from benchmarks import recorded
from benchmarks.recorded import by_right_answers, divided, exact, final_answer, judged_by_answer, vote_gains
from cappy_train.adapt import pick_questions
from cappy_train.instances import Instance, parse_instance

SOLUTIONS = {"a": "1 + 1 = 2\nA: 2", "b": "1 + 1 is\nA: $2.0", "c": "A: 3", "d": "no answer"}


def sum_of_two(number: int, split: str = "test") -> dict[str, Any]:
    return {
        "id": f"sum:{number}",
        "task": "sums",
        "instruction": f"what is 1 and 1, question {number}",
        "references": ["The answer is two.\nA: 2"],
        "candidates": [{"text": text, "source": source} for source, text in SOLUTIONS.items()],
        "choices": None,
        "split": split,
    }


def riddle(number: int, split: str) -> dict[str, Any]:
    texts = {"direct": "(A)" if number % 3 else "(B)", "cot": "(A)"} if number else {}
    return sum_of_two(number, split) | {
        "task": ("riddles", "brackets")[number % 2],
        "references": ["(A)"],
        "candidates": [{"text": text, "source": source} for source, text in texts.items()],
        "choices": None if number % 2 else ["(A)", "(B)", "(C)"],
    }


def sentence(number: int, split: str) -> dict[str, Any]:
    texts = {"bart": f"the dog {number} runs", "levt": "dog dog dog", "gpt2_sample1": "the dog"}
    return sum_of_two(number, split) | {
        "task": "commongen",
        "references": [f"the dog {number} runs today"],
        "candidates": [{"text": text, "source": source} for source, text in list(texts.items())[: 2 + (number == 0)]],
    }


def instance(record: dict[str, Any]) -> Instance:
    return parse_instance(record)


def test_the_final_answer_is_a_number_where_it_can_be() -> None:
    assert final_answer("so\nA: 1\nA: $1,200") == "1200.0" == final_answer("A: 1200.00")
    assert final_answer("A: twelve") == "twelve"
    assert final_answer("the answer is 12") == ""


def test_right_solutions_are_the_right_choices() -> None:
    (one,) = by_right_answers([instance(sum_of_two(0))], final_answer)
    assert one.choices == tuple(SOLUTIONS.values())
    assert one.references == (SOLUTIONS["a"], SOLUTIONS["b"])
    none_right = sum_of_two(1) | {"candidates": [{"text": "A: 3", "source": "c"}]}
    assert list(by_right_answers([instance(none_right)], final_answer)) == []


def test_answers_are_right_or_wrong_with_choices_or_without() -> None:
    chosen = sum_of_two(0) | {"choices": ["2", "3"], "references": ["2"]}
    open_one = sum_of_two(1) | {"candidates": [{"text": text, "source": text} for text in ("> )", "> ]")]}
    assert [one.choices for one in exact([instance(chosen), instance(open_one | {"references": ["> )"]})])] == [
        ("2", "3"),
        ("> )", "> ]"),
    ]


def test_solutions_are_judged_by_their_answers() -> None:
    one = instance(sum_of_two(0))
    (question,) = judged_by_answer(pick_questions([one]), [one], final_answer)
    assert question.gains.tolist() == [1, 1, 0, 0]


def test_a_vote_is_of_answers_and_not_of_choices() -> None:
    one = instance(sum_of_two(0))
    (question,) = judged_by_answer(pick_questions([one]), [one], final_answer)
    assert vote_gains([question], final_answer).tolist() == [1]
    wrong = {"candidates": [{"text": text, "source": text} for text in ("no", "yes", "yes ")], "choices": ["no", "yes"]}
    chosen = instance(sum_of_two(0) | wrong | {"references": ["no"]})
    only_choices = instance(sum_of_two(1) | {"candidates": [], "choices": ["no", "yes"], "references": ["no"]})
    votes = vote_gains(pick_questions([chosen, only_choices]), str.strip)
    np.testing.assert_array_equal(votes, [0, np.nan])


def test_dev_is_divided_the_same_way_each_time() -> None:
    some = [instance(sentence(number, "dev")) for number in range(200)]
    splits = [one.split for one in divided(some)]
    assert splits == [one.split for one in divided(some)]
    assert 20 < splits.count("dev") < 60
    assert set(splits) == {"train", "dev"}


def test_the_whole_of_it_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_scorer(tmp_path / "tiny", seed=1)
    data = tmp_path / "data"
    data.mkdir()
    sentences = [sentence(number, "dev" if number % 2 else "test") for number in range(60)]
    sums = [sum_of_two(number, ("train", "dev", "test")[number % 3]) for number in range(30)]
    riddles = [riddle(number, ("test", "train", "dev")[number // 2 % 3]) for number in range(48)]
    for name, records in {"commongen": sentences, "gsm8k_candidates": sums, "bbh_candidates": riddles}.items():
        with gzip.open(data / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    output = tmp_path / "report.json"
    options = ["--folder", str(tmp_path / "models"), "--output", str(output)]
    assert recorded.main(["--data", str(data), "--model", str(model), *options]) == 0
    report = json.loads(output.read_text())
    assert list(report["sets"]["gsm8k"]["test"]) == ["Rouge-L", "accuracy"]
    methods = {one["name"]: one for one in report["sets"]["gsm8k"]["test"]["accuracy"]["methods"]}
    assert methods["vote"]["average"]["value"] == methods["a"]["average"]["value"] == 1
    assert methods["c"]["average"]["value"] == methods["d"]["average"]["value"] == 0
    assert methods["random"]["average"]["value"] == 0.5
    printed = capsys.readouterr().out
    assert "commongen, Rouge-L, 30 test questions" in printed
    assert "| levt |" in printed
    assert "gpt2_sample1" not in printed
    among, with_choices = report["sets"]["bbh"]["test"].values()
    assert among["questions_by_task"] == {"brackets": 8, "riddles": 7}
    assert with_choices["questions_by_task"] == {"brackets": 8, "riddles": 8}
    assert {one["name"]: one["tasks"]["brackets"]["value"] for one in among["methods"]}["cot"] == 1
    assert "| brackets (8) |" in printed
