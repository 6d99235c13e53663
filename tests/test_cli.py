"""The command line: what it writes, what it says of bad input, how it ends."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import pytest

import cappy_lite
from cappy_lite.cli import main
from cappy_lite.rouge import RougeL, rouge_l, rouge_lsum

# Ctrl-C, as in a terminal: a test run in the background may hand down that it be ignored.
PROGRAM = """
import signal, sys
from cappy_lite.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
INSTRUCTION = "Put the concepts together: ski, mountain"
CANDIDATES = ["Skier skis down.", "A mountain.", "The chef cooks."]


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a command in this process, with stdin from a file."""

    def command(*arguments: str | Path, stdin: str | bytes = b"") -> Done:
        path = tmp_path / "stdin"
        path.write_bytes(stdin if isinstance(stdin, bytes) else stdin.encode())
        with path.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as leaving:  # argparse's way
                code = int(leaving.code or 0)
        return Done(code, *capsys.readouterr())

    return command


def scored_lines(out: str) -> list[tuple[float, str]]:
    return [(float(score), text) for score, text in (line.split("\t") for line in out.splitlines())]


def expected_lines(tiny_model: Path, top_k: int | None = None) -> list[tuple[float, str]]:
    ranking = cappy_lite.rerank(INSTRUCTION, CANDIDATES, top_k=top_k, model=tiny_model)
    return [(round(row.score, 4), row.text) for row in ranking]


# rerank and score


def test_rerank_arguments(run: Callable[..., Done], tiny_model: Path) -> None:
    done = run("rerank", INSTRUCTION, *CANDIDATES, "--model", tiny_model)
    assert (done.code, done.err) == (0, "")
    assert scored_lines(done.out) == expected_lines(tiny_model)


def test_blank_lines_are_no_candidates(run: Callable[..., Done], tiny_model: Path) -> None:
    done = run("rerank", INSTRUCTION, "--model", tiny_model, stdin="\n\n".join([*CANDIDATES, " \n"]))
    assert scored_lines(done.out) == expected_lines(tiny_model)


def test_rerank_lines(run: Callable[..., Done], tiny_model: Path) -> None:
    done = run("rerank", INSTRUCTION, "--model", tiny_model, stdin="\n".join(CANDIDATES))
    assert scored_lines(done.out) == expected_lines(tiny_model)
    assert run("rerank", INSTRUCTION, "--model", tiny_model, stdin="\r\n".join([*CANDIDATES, ""])) == done


def test_rerank_with_an_instruction_file(run: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "instruction.txt"
    path.write_bytes(b"\xef\xbb\xbf" + INSTRUCTION.encode() + b"\n")
    done = run("rerank", "--instruction-file", path, "--model", tiny_model, "--", *CANDIDATES)
    assert scored_lines(done.out) == expected_lines(tiny_model)


def test_rerank_top_k_and_threads(run: Callable[..., Done], tiny_model: Path) -> None:
    done = run("rerank", INSTRUCTION, *CANDIDATES, "--model", tiny_model, "--top-k", "2", "--threads", "1")
    assert scored_lines(done.out) == expected_lines(tiny_model, top_k=2)


def test_score_keeps_the_order(run: Callable[..., Done], tiny_model: Path) -> None:
    done = run("score", INSTRUCTION, *CANDIDATES, "--model", tiny_model)
    assert [text for _, text in scored_lines(done.out)] == CANDIDATES
    assert sorted(scored_lines(done.out), reverse=True) == expected_lines(tiny_model)


def test_many_lines_are_one_ranking(run: Callable[..., Done], tiny_model: Path) -> None:
    candidates = [f"the {number}" for number in range(600)]
    scores = cappy_lite.score(INSTRUCTION, candidates, model=tiny_model)
    done = run("score", INSTRUCTION, "--model", tiny_model, stdin="\n".join(candidates))
    assert scored_lines(done.out) == [
        (round(score, 4), text) for score, text in zip(scores.tolist(), candidates, strict=True)
    ]
    best = cappy_lite.rerank(INSTRUCTION, candidates, model=tiny_model)[0]
    done = run("rerank", INSTRUCTION, "--model", tiny_model, "--top-k", "1", stdin="\n".join(candidates))
    assert scored_lines(done.out) == [(round(best.score, 4), best.text)]


def test_no_candidates_give_no_lines(run: Callable[..., Done], tiny_model: Path) -> None:
    for name in ("rerank", "score"):
        assert run(name, INSTRUCTION, "--model", tiny_model) == Done(0, "", "")


def test_other_scripts_pass_through(run: Callable[..., Done], tiny_model: Path) -> None:
    texts = ["Le café est fermé.", "雪の山", "\U0001f3bf"]
    done = run("score", "Où ?", "--model", tiny_model, stdin="\n".join(texts))
    assert [text for _, text in scored_lines(done.out)] == texts


def test_rerank_json_lines(run: Callable[..., Done], tiny_model: Path) -> None:
    first = {"id": 7, "instruction": INSTRUCTION, "candidates": CANDIDATES, "note": "é \ud800"}
    second = {"instruction": INSTRUCTION, "candidates": [{"text": text, "source": "x"} for text in CANDIDATES]}
    empty = {"instruction": INSTRUCTION, "candidates": []}
    stdin = "\n\n".join(json.dumps(record) for record in (first, second, empty))
    done = run("rerank", "--jsonl", "--model", tiny_model, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    written = [json.loads(line) for line in done.out.splitlines()]
    ranked = [
        {"index": row.index, "text": row.text, "score": round(row.score, 6)}
        for row in cappy_lite.rerank(INSTRUCTION, CANDIDATES, model=tiny_model)
    ]
    assert written == [first | {"ranked": ranked}, second | {"ranked": ranked}, empty | {"ranked": []}]
    done = run("rerank", "--jsonl", "--model", tiny_model, "--top-k", "1", stdin=json.dumps(first))
    assert json.loads(done.out)["ranked"] == ranked[:1]


def test_score_json_lines(run: Callable[..., Done], tiny_model: Path) -> None:
    record = {"instruction": INSTRUCTION, "candidates": CANDIDATES}
    done = run("score", "--jsonl", "--model", tiny_model, stdin=json.dumps(record))
    scores = cappy_lite.score(INSTRUCTION, CANDIDATES, model=tiny_model).tolist()
    assert json.loads(done.out) == record | {"scores": [round(score, 6) for score in scores]}


def test_truncation_is_told_with_its_line(run: Callable[..., Done], tiny_model: Path) -> None:
    records = [{"instruction": "a", "candidates": ["b"]}, {"instruction": "a", "candidates": ["b", "word " * 200]}]
    done = run("score", "--jsonl", "--model", tiny_model, stdin="\n".join(map(json.dumps, records)))
    assert done.code == 0
    assert len(done.out.splitlines()) == 2
    assert done.err == (
        "cappy-lite: warning: line 2: text was cut, since the model reads 160 tokens: "
        "1 of 2 candidates lost their ends (at most 44 tokens)\n"
    )
    done = run("rerank", "word " * 200, "b", "--model", tiny_model)
    assert done.err.startswith("cappy-lite: warning: candidates 1 to 1: text was cut")


# rouge and models


def test_rouge_arguments(run: Callable[..., Done]) -> None:
    done = run("rouge", "the skier skis", "a dog", "skiers ski")
    assert done == Done(0, "precision\t0.0000\nrecall\t0.0000\nfmeasure\t0.0000\n", "")
    done = run("rouge", "the skier skis", "a dog", "skiers ski", "--stem")
    assert done == Done(0, "precision\t0.6667\nrecall\t1.0000\nfmeasure\t0.8000\n", "")


@pytest.mark.parametrize(
    ("options", "fmeasure"),
    [
        ([], "0.3333"),  # "the" is common
        (["--type", "rougeL", "--tokenizer", "rouge"], "0.3333"),
        (["--stem"], "0.6667"),  # and "dog"
        (["--type", "rougeLsum"], "0.6667"),  # "the", and "sat" of another line
        (["--type", "rougeLsum", "--stem"], "1.0000"),
        (["--tokenizer", "unicode"], "0.5000"),  # "\u0447\u0430\u0439" and "the", of four words each
        (["--tokenizer", "char"], "0.7200"),  # nine characters of 13 and of 12
    ],
)
def test_rouge_options(run: Callable[..., Done], options: list[str], fmeasure: str) -> None:
    done = run("rouge", "\u0447\u0430\u0439\nthe dogs\nsat", "sat \u0447\u0430\u0439\nthe dog", *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[2] == f"fmeasure\t{fmeasure}"


def rouge_records(count: int) -> list[dict[str, object]]:
    """Records that need no escapes in JSON, with one or more references."""
    return [
        {
            "id": index,
            "prediction": f"the cat {index} sat\non mat {index % 7}",
            "references": ["a dog", f"cats {index}"],
        }
        if index % 3
        else {"prediction": f"the cat {index}", "references": f"{index} \u00e9t\u00e9s\non a mat", "id": index}
        for index in range(count)
    ]


def completed(records: list[dict[str, object]], key: str, compute: Callable[..., RougeL]) -> list[dict[str, object]]:
    return [record | {key: compute(record["prediction"], record["references"])._asdict()} for record in records]


@pytest.mark.parametrize(
    ("options", "key", "compute"),
    [
        ([], "rouge_l", rouge_l),
        (["--stem"], "rouge_l", partial(rouge_l, stem=True)),
        (["--tokenizer", "char"], "rouge_l", partial(rouge_l, tokenizer="char")),
        (["--type", "rougeLsum", "--tokenizer", "unicode"], "rouge_lsum", partial(rouge_lsum, tokenizer="unicode")),
    ],
)
def test_rouge_json_lines(
    run: Callable[..., Done], options: list[str], key: str, compute: Callable[..., RougeL]
) -> None:
    records = rouge_records(20)
    done = run("rouge", "--jsonl", *options, stdin="\n".join(map(json.dumps, records)))
    assert (done.code, done.err) == (0, "")
    assert [json.loads(line) for line in done.out.splitlines()] == completed(records, key, compute)


@pytest.mark.parametrize("batch_bytes", [1, 100, 1000, 1 << 18])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \r\n\u3000\n"])
def test_any_batches_of_lines_give_the_same(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, batch_bytes: int, end: str
) -> None:
    monkeypatch.setattr("cappy_lite.cli.BATCH_BYTES", batch_bytes)
    records = rouge_records(30)
    records[7]["prediction"] = "the cat " * 1000
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    expected = "".join(
        json.dumps(record, ensure_ascii=False) + "\n" for record in completed(records, "rouge_l", rouge_l)
    )
    assert run("rouge", "--jsonl", stdin=end.join(lines)) == Done(0, expected, "")
    assert run("rouge", "--jsonl", stdin=end.join(["\ufeff" + lines[0], *lines[1:], ""])) == Done(0, expected, "")
    assert run("rouge", "--jsonl") == Done(0, "", "")


def test_models_lists_what_is_shipped(
    run: Callable[..., Done], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cappy_lite.models._SHIPPED", tiny_model.parent)
    size = sum((tiny_model / name).stat().st_size for name in ("model.onnx", "tokenizer.json", "README.md"))
    assert run("models") == Done(
        0,
        f"name  MB   max tokens  licence     made from\ntiny  {size / 1e6:.1f}  160         Apache-2.0  none\n",
        "",
    )
    assert run("score", INSTRUCTION, "a", "--model", "tiny").code == 0


# Bad input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON: Expecting value at column 1"),
        ('{"instruction": "a", "candidates": ["b"', "not JSON: Expecting ',' delimiter at column 40"),
        ("[" * 100_000, "not JSON that can be read"),
        ('{"instruction": "a", "candidates": ["b"], "weight": NaN}', "not JSON that can be read: NaN is no JSON value"),
        ("[1]", "not a JSON object"),
        ('{"candidates": ["b"]}', "needs an 'instruction', a string"),
        ('{"instruction": 3, "candidates": ["b"]}', "needs an 'instruction', a string"),
        ('{"instruction": "a"}', "needs 'candidates', a list"),
        ('{"instruction": "a", "candidates": "b"}', "needs 'candidates', a list"),
        (
            '{"instruction": "a", "candidates": ["b", {"source": "x"}]}',
            "candidates[1] must be a string, or an object with a string 'text'",
        ),
        ('{"instruction": "a", "candidates": [null]}', "candidates[0] must be a string"),
        ('{"instruction": "a", "candidates": ["\\ud800"]}', "candidates[0] has a lone surrogate at character 0"),
    ],
)
def test_a_bad_line_is_named(run: Callable[..., Done], tiny_model: Path, line: str, message: str) -> None:
    good = '{"instruction": "a", "candidates": ["b"]}'
    for name in ("rerank", "score"):
        done = run(name, "--jsonl", "--model", tiny_model, stdin=f"{good}\n\n{line}\n{good}\n")
        assert done.code == 1
        assert len(done.out.splitlines()) == 1  # what came before it is done
        assert done.err.startswith(f"cappy-lite: error: line 3: {message}")
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("batch_bytes", [1, 1 << 18])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "not JSON: Expecting value at column 1"),
        (b'"\xff"', "not UTF-8 at byte 2: convert it first"),
        (b'{"prediction": "a"}', "has no 'references'"),
        (b'{"references": "a"}', "has no 'prediction'"),
        (b'{"prediction": 3, "references": "a"}', "prediction must be a str, not int"),
        (b'{"prediction": "a", "references": null}', "references must be a list of str, not NoneType"),
        (b'{"prediction": "a", "references": ["b", 3]}', "references[1] must be a str, not int"),
        (b'{"prediction": "a", "references": []}', "references is empty: give at least one reference"),
    ],
)
def test_a_bad_line_for_rouge_is_named(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, batch_bytes: int, line: bytes, message: str
) -> None:
    monkeypatch.setattr("cappy_lite.cli.BATCH_BYTES", batch_bytes)
    good = b'{"prediction": "a", "references": "a"}'
    done = run("rouge", "--jsonl", stdin=b"\n".join([good, b"", good, line, good, b""]))
    assert done.code == 1
    assert [json.loads(text)["rouge_l"]["fmeasure"] for text in done.out.splitlines()] == [1.0, 1.0]
    assert done.err == f"cappy-lite: error: line 4: {message}\n"


def test_bytes_that_are_no_text_are_named(run: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    done = run("score", INSTRUCTION, "--model", tiny_model, stdin=b"good\nb\xe9d\n")
    assert (done.code, done.err) == (1, "cappy-lite: error: line 2: not UTF-8 at byte 2: convert it first\n")
    path = tmp_path / "instruction.txt"
    path.write_bytes(b"\xff")
    done = run("score", "--instruction-file", path, "a", "--model", tiny_model)
    assert (done.code, done.err) == (1, f"cappy-lite: error: {path}: not UTF-8 at byte 1: convert it first\n")


def test_a_missing_file_or_model_is_named(run: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    done = run("score", "--instruction-file", tmp_path / "none.txt", "a", "--model", tiny_model)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert str(tmp_path / "none.txt") in done.err
    done = run("rerank", "a", "b", "--model", "no-such-model")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("cappy-lite: error: unknown model 'no-such-model'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["sort"], "invalid choice: 'sort'"),
        (["rerank"], "give an instruction, --instruction-file or --jsonl"),
        (["rerank", "a", "b", "--top-k", "0"], "--top-k: must be a whole number of at least 1, not '0'"),
        (["rerank", "a", "b", "--top-k", "x"], "--top-k: must be a whole number of at least 1, not 'x'"),
        (["score", "a", "b", "--threads", "-1"], "--threads: must be a whole number of at least 1, not '-1'"),
        (["score", "a", "b", "--top-k", "1"], "unrecognized arguments: --top-k 1"),
        (["score", "a", "--jsonl"], "--jsonl reads its texts from stdin: give no others"),
        (["rerank", "--instruction-file", "x", "--jsonl"], "--jsonl reads its texts from stdin: give no others"),
        (["rouge", "a"], "give a prediction and at least one reference, or --jsonl"),
        (["rouge", "a", "b", "--jsonl"], "--jsonl reads its texts from stdin: give no others"),
        (["rouge", "a", "b", "--stem", "--tokenizer", "char"], "--stem works with --tokenizer rouge alone"),
        (["rouge", "--jsonl", "--stem", "--tokenizer", "unicode"], "--stem works with --tokenizer rouge alone"),
        (["rouge", "a", "b", "--tokenizer", "word"], "argument --tokenizer: invalid choice: 'word'"),
        (["rouge", "a", "b", "--type", "rouge1"], "argument --type: invalid choice: 'rouge1'"),
    ],
)
def test_wrong_usage(run: Callable[..., Done], arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["rerank", "score", "rouge", "models"])
def test_help_has_examples(run: Callable[..., Done], name: str) -> None:
    done = run(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"examples:\n  cappy-lite {name}" in done.out
    assert f"{name} " in run("--help").out


# Progress, pipes and signals


def test_a_person_sees_progress(run: Callable[..., Done], tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    line = json.dumps({"instruction": "a", "candidates": ["b"]}) + "\n"
    pair = json.dumps({"prediction": "a", "references": "b"}) + "\n"
    monkeypatch.setattr("cappy_lite.cli.BATCH_BYTES", len(pair))
    long = [
        (["score", "--jsonl", "--model", tiny_model], line * 4),
        (["score", "a", "--model", tiny_model], "\n".join(f"the {number}" for number in range(1024))),
        (["rouge", "--jsonl"], pair * 4),
    ]
    quiet = [run(*arguments, stdin=stdin) for arguments, stdin in long]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for (arguments, stdin), expected in zip(long, quiet, strict=True):
        done = run(*arguments, stdin=stdin)
        assert expected == Done(0, done.out, "")
        assert "[###############               ]  50%" in done.err
        assert done.err.endswith("100%\r\033[K")


def start(*arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], text=True, bufsize=1, **pipes)


@pytest.fixture
def rouge() -> Iterator[subprocess.Popen[str]]:
    """`cappy-lite rouge --jsonl` in a process of its own."""
    with start("rouge", "--jsonl") as process:
        yield process
        process.kill()


def exchange(process: subprocess.Popen[str], written: str = '{"prediction": "a b", "references": "a b"}\n') -> str:
    """Writes one record, if not told otherwise, and returns the next line that is read, while stdin stays open."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(written)
    assert select.select([process.stdout], [], [], 60)[0], "nothing was written in a minute"
    return process.stdout.readline()


def test_each_record_is_written_as_it_is_done(rouge: subprocess.Popen[str]) -> None:
    for _ in range(3):
        assert json.loads(exchange(rouge))["rouge_l"]["fmeasure"] == 1.0
    _, err = rouge.communicate(timeout=60)
    assert (rouge.returncode, err) == (0, "")


def test_half_a_line_holds_up_nothing(rouge: subprocess.Popen[str]) -> None:
    first = exchange(rouge, '{"prediction": "a b", "references": "b"}\n{"predic')
    assert json.loads(first)["rouge_l"]["precision"] == 0.5
    second = exchange(rouge, 'tion": "a b c d", "references": "b"}\n')
    assert json.loads(second)["rouge_l"]["precision"] == 0.25


def test_a_closed_pipe_ends_it_quietly(rouge: subprocess.Popen[str]) -> None:
    exchange(rouge)
    assert rouge.stdout is not None
    assert rouge.stdin is not None
    assert rouge.stderr is not None
    rouge.stdout.close()
    rouge.stdin.write('{"prediction": "a", "references": "a"}\n')
    assert rouge.wait(timeout=60) == 141
    assert rouge.stderr.read() == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_stream_that_the_shell_closed_is_an_error(closed: str) -> None:
    command = f"'{sys.executable}' -m cappy_lite.cli rouge 'a b' 'a' {closed}"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "cappy-lite: error: stdin or stdout is closed: leave both open, or connect them to /dev/null\n"
    )


def test_ctrl_c_ends_it_quietly(rouge: subprocess.Popen[str]) -> None:
    exchange(rouge)
    rouge.send_signal(signal.SIGINT)
    assert rouge.wait(timeout=60) == 130
    assert rouge.stderr is not None
    assert rouge.stderr.read() == ""
