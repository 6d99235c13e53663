"""Sampling from a web API, against a real HTTP server that fails in every way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_api import KEY, MODEL, Api, serving
from tiny_generators import write_generator

from cappy_lite.errors import InputValueError
from cappy_train import web_models
from cappy_train.cli import main
from cappy_train.instances import Instance, read_instances, write_instances
from cappy_train.journal import Journal
from cappy_train.sampling import Decoding, sample
from cappy_train.shards import Shards
from cappy_train.web_models import LimitReached, WebModel

TWO = (Decoding("sampling", 2), Decoding("nucleus", 2, top_p=0.95))


def instances(count: int) -> list[Instance]:
    return [Instance(f"i{n}", "t", "ask", f"say the word {n}", ("it",), (), None, "train") for n in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generator(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def api(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(web_models, "FIRST_PAUSE", 0.01)
    with serving(folder) as server:
        yield server


def model(api: Api, **options: Any) -> WebModel:
    return WebModel(api.url, MODEL, **{"key": KEY, "decodings": TWO, "max_new_tokens": 5} | options)


def texts(sampled: Any) -> list[list[tuple[str, str, float | None]]]:
    return [[(one.text, one.source, one.log_likelihood) for one in some] for some in sampled.candidates]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}


def test_answers_become_candidates_with_likelihoods(api: Api) -> None:
    told: list[tuple[int, int]] = []
    sampled = model(api).sample(instances(3), advance=lambda *done: told.append(done))
    for number, candidates in enumerate(sampled.candidates):
        assert [one.source for one in candidates] == ["sampling"] * 2 + ["nucleus"] * 2
        for one in candidates:
            assert one.text == one.text.strip()
            assert one.log_likelihood is not None
            assert one.mean_log_likelihood is not None
            assert one.log_likelihood <= one.mean_log_likelihood < 0
        assert api.answered[f"say the word {number}", 1.0, 0.95] == 2
    assert sampled.counts == {"empty": 0, "refused": 0}
    assert [sum(column) for column in zip(*told, strict=True)] == [3, 6 * (4 + 20)]
    assert {(body["temperature"], body["top_p"], body["n"]) for body in api.requests} == {(1, 1, 2), (1, 0.95, 2)}


def test_every_failure_is_tried_again(api: Api) -> None:
    expected = texts(model(api).sample(instances(4)))
    api.faults = [500, 429, "none", "stall", 503, "drop", "garbage", "shapeless", 408, 502, "drop", 429]
    assert texts(model(api, time_out=3).sample(instances(4))) == expected
    assert not api.faults


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_heeded_by_all(api: Api, form: str) -> None:
    model(api).sample(instances(1))
    wait = "1" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    api.times.clear()
    api.headers, api.faults = {"Retry-After": wait}, ["none", 429]
    model(api, concurrency=1).sample(instances(3))
    refused, after = api.times[1], api.times[2]
    assert after - refused >= 0.95
    assert len(api.times) == 7


def test_a_long_wait_ends_the_job(api: Api) -> None:
    api.headers, api.faults = {"Retry-After": "7200"}, [429]
    with pytest.raises(InputValueError, match=r"asks to wait for 7,200 s .*the same command goes on"):
        model(api).sample(instances(3))


def test_an_api_that_is_down_ends_the_job(api: Api) -> None:
    api.faults = [500] * 8
    with pytest.raises(InputValueError, match=r"failed 8 times, at last: 500, .*on purpose"):
        model(api).sample(instances(3))
    assert len(api.requests) == 8
    with pytest.raises(InputValueError, match="failed 8 times, at last: no connection"):
        WebModel("http://127.0.0.1:9/v1", MODEL, key=KEY).sample(instances(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "wrong"}, "401, .*wrong key.*give a key that is valid there"),
        ({"key": None}, "401, .*it wants a key, and none was given"),
        ({"name": "other"}, "404, .*is 'other' a model there, and the address complete"),
        ({"path": "/v2"}, "404, .*the address complete"),
    ],
)
def test_what_is_wrong_for_all_shows_at_the_first_request(api: Api, changes: dict[str, Any], message: str) -> None:
    url, name = api.url.replace("/v1", changes.get("path", "/v1")), changes.get("name", MODEL)
    with pytest.raises(InputValueError, match=message):
        WebModel(url, name, key=changes.get("key", KEY)).sample(instances(9))
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    "unknown",
    [set(), {"logprobs"}, {"n"}, {"n", "logprobs", "max_tokens"}],
    ids=lambda names: ",".join(sorted(names)) or "none",
)
def test_what_the_api_does_not_know_is_left_out(api: Api, unknown: set[str]) -> None:
    api.unknown, api.logprobs = unknown, "logprobs" not in unknown
    sampled = model(api).sample(instances(3))
    for candidates in sampled.candidates:
        assert len(candidates) == 4
        assert all((one.log_likelihood is None) == ("logprobs" in unknown) for one in candidates)
    assert set(api.answered.values()) == {2}
    assert len(api.requests) <= 8 + 12


def test_an_api_that_refuses_all_ends_the_job(api: Api) -> None:
    api.unknown = {"messages"}
    with pytest.raises(InputValueError, match=r"first of instance 'i0': 400, .*unknown parameter messages"):
        model(api).sample(instances(9))


def test_an_api_without_logprobs(api: Api) -> None:
    api.logprobs = False
    assert {one.log_likelihood for some in model(api).sample(instances(2)).candidates for one in some} == {None}


def test_fewer_choices_than_were_asked_for(api: Api) -> None:
    api.most = 1
    sampled = model(api, decodings=[Decoding("sampling", 3)]).sample(instances(2))
    assert [len(candidates) for candidates in sampled.candidates] == [3, 3]
    assert sorted(body["n"] for body in api.requests) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("status", [400, 500])
def test_a_question_that_alone_is_refused(
    api: Api, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_models, "FIRST_PAUSE", 0.03)  # so that others are answered meanwhile
    api.poison, api.poison_status = "word 2", status
    write_instances(tmp_path / "in.jsonl", instances(6))
    shards = sample(tmp_path / "in.jsonl", tmp_path / "out", model(api, concurrency=4))
    assert shards.manifest["counts"] == {"instances": 6, "sampled": 20, "empty": 0, "refused": 2}
    assert [note.partition(": ")[0] for note in shards.manifest["notes"]] == [
        "instance 'i2', sampling",
        "instance 'i2', nucleus",
    ]
    assert all(f"{status}, " in note and "too long" in note for note in shards.manifest["notes"])
    assert [len(one.candidates) for one in read_instances(tmp_path / "out")] == [4, 4, 0, 4, 4, 4]


def test_no_more_requests_at_a_time_than_allowed(api: Api) -> None:
    api.delay = 0.02
    model(api, concurrency=3).sample(instances(10))
    assert api.most_at_a_time == 3


def test_spending_limits_stop_and_go_on(api: Api, tmp_path: Path) -> None:
    write_instances(tmp_path / "in.jsonl", instances(10))
    expected = sample(tmp_path / "in.jsonl", tmp_path / "all", model(api), shard_instances=4)
    api.requests.clear()
    api.answered.clear()
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "in.jsonl"), "--out", str(out), "--api", api.url, "--model", MODEL]
    command = ["sample", *arguments, "--decodings", "sampling", "nucleus", "--samples", "2", "--max-new-tokens", "5"]
    command += ["--shard-instances", "4"]
    assert main([*command, "--max-requests", "11"]) == 1
    assert len(api.requests) == 11
    assert main([*command, "--max-requests", "11"]) == 1
    assert len(api.requests) == 11
    spent = sum(json.loads(line)["tokens"] for line in (out / "journal.jsonl").read_text().splitlines())
    assert spent == 11 * 24
    assert main([*command, "--max-tokens", "600"]) == 1
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert 11 < len(journal) < 20
    assert sum(line["tokens"] for line in journal) <= 600
    assert main(command) == 0
    assert len(api.requests) == 20
    assert set(api.answered.values()) == {2}
    assert contents(out) == contents(tmp_path / "all")
    assert Shards(out).manifest["counts"] == expected.manifest["counts"]


def test_a_limit_where_usage_is_not_told(api: Api) -> None:
    api.usage = False
    with pytest.raises(LimitReached, match=r"3 requests and .* tokens are spent"):
        model(api, max_tokens=900, concurrency=4).sample(instances(9))


PROGRAM = """
import sys
from pathlib import Path
from cappy_train import web_models
from cappy_train.cli import main
web_models.FIRST_PAUSE = 0.01
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_the_same_bytes_and_no_question_twice_when_it_was_killed(api: Api, tmp_path: Path, way: signal.Signals) -> None:
    write_instances(tmp_path / "in.jsonl", instances(24))
    api.most = 1
    sample(tmp_path / "in.jsonl", tmp_path / "all", model(api), shard_instances=5)
    api.answered.clear()
    api.delay = 0.05
    api.faults = [500, 429, "drop", "none"] * 4
    out = tmp_path / "out"
    arguments = ["sample", "--data", str(tmp_path / "in.jsonl"), "--out", str(out), "--api", api.url, "--model", MODEL]
    arguments += ["--decodings", "sampling", "nucleus", "--samples", "2", "--max-new-tokens", "5", "--concurrency", "3"]
    arguments += ["--shard-instances", "5"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and sum(api.answered.values()) < 31:
        time.sleep(0.002)
    process.send_signal(way)
    assert process.wait() == (-signal.SIGKILL if way == signal.SIGKILL else 130)
    time.sleep(0.3)  # what the server was at
    with (out / "journal.jsonl").open("ab") as file:
        file.write(b'{"id": "i23", "sou')
    kept: Counter[tuple[str, str]] = Counter()
    for line in (out / "journal.jsonl").read_text().splitlines()[:-1]:
        record = json.loads(line)
        kept[record.get("id"), record.get("source")] += len(record.get("responses", []))
    assert sum(kept.values()) >= 25
    before = api.answered.copy()
    assert main(arguments) == 0
    for number in range(24):
        for source, top_p in (("sampling", 1.0), ("nucleus", 0.95)):
            new = api.answered[f"say the word {number}", 1.0, top_p] - before[f"say the word {number}", 1.0, top_p]
            assert new == 2 - kept[f"i{number}", source]
    assert [len(one.candidates) for one in read_instances(out)] == [4] * 24
    expected = contents(tmp_path / "all")
    assert contents(out) == expected
    (out / "unfinished.json").write_text(json.dumps(Shards(out).manifest["plan"]))
    for name in ("manifest.json", "shard-000002.parquet"):
        (out / name).unlink()
    asked = len(api.requests)
    assert main(arguments) == 0
    assert (contents(out), len(api.requests)) == (expected, asked)


def test_a_full_disk_ends_the_job(api: Api, tmp_path: Path) -> None:
    write_instances(tmp_path / "in.jsonl", instances(30))
    arguments = ["sample", "--data", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out"), "--api", api.url]
    arguments += ["--model", MODEL, "--max-new-tokens", "5"]
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n" + PROGRAM
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "journal.jsonl can't be written" in done.stderr
    assert "Traceback" not in done.stderr
    asked = sum(api.answered.values())
    assert main(arguments) == 0
    assert sum(api.answered.values()) <= 30 * 12 + 16 * 4 < asked + 30 * 12


def test_inside_a_running_event_loop(api: Api) -> None:
    async def notebook() -> Any:
        return model(api).sample(instances(2))

    assert texts(asyncio.run(notebook())) == texts(model(api).sample(instances(2)))


def test_a_journal_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"id": "a", "source": "s", "requests": 1, "tokens": 5}\n[]\n')
    with pytest.raises(InputValueError, match=r"journal.jsonl, line 2: is damaged"):
        Journal(path)


def test_options() -> None:
    for url in ("localhost:8000", "ftp://x/v1", "http://me:pass@x/v1", "http://x/v1?key=1"):
        with pytest.raises(InputValueError, match="url "):
            WebModel(url, MODEL)
    for options, message in (
        ({"decodings": [Decoding("top-k", top_k=40)]}, "offers no 'top-k'"),
        ({"decodings": []}, "one or more"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"time_out": 0.0}, "time_out is 0.0"),
        ({"max_requests": 0}, "max_requests must be at least 1"),
    ):
        with pytest.raises(InputValueError, match=message):
            WebModel("http://x/v1", MODEL, **options)  # type: ignore[arg-type]


def test_the_command_wants_what_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start = ["sample", "--data", "x", "--out", str(tmp_path / "out"), "--model", "m"]
    for more, message in (
        (["--max-tokens", "5"], "--max-tokens is for web APIs"),
        (["--api", "http://x/v1", "--seed", "1"], "--seed is for local models"),
        (["--api", "http://x/v1", "--key-variable", "UNSET"], "environment variable UNSET"),
        (["--api", "http://x/v1", "--decodings", "beam"], "offers no 'beam'"),
    ):
        assert main([*start, *more]) == 1
        assert message in capsys.readouterr().err
    assert "UNSET" not in os.environ
