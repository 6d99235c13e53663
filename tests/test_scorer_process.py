"""A guest's manners: threads, forks, printing, files and the network of the process that scores."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from cappy_lite import Scorer
from cappy_lite.session import available_cpus, cgroup_cpus

FORKS = """
import os, sys
import cappy_lite, cappy_lite.scorer

def in_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)  # with all that an interpreter does at its end
    return os.waitpid(pid, 0)[1]

def score():
    assert (scorer.score("a", ["b", "c"]) == expected).all()
    assert (handle.score(["b", "c"]) == expected).all()
    assert (cappy_lite.score("a", ["b", "c"], model=folder) == expected).all()

def score_in_a_grandchild():
    assert in_child(score) == 0
    score()
    assert in_child(score) == 0

folder = sys.argv[1]
scorer = cappy_lite.Scorer(folder, threads=3)
expected = scorer.score("a", ["b", "c"])
handle = scorer.instruction("a")
assert (handle.score(["b", "c"]) == expected).all()
assert in_child(score) == 0
score()
for work in (score, lambda: None, score_in_a_grandchild):
    assert in_child(work) == 0
with cappy_lite.scorer._lock:  # as another thread may hold it while this one forks
    assert in_child(score) == 0
score()
"""

QUIET = """
import os, sys
import cappy_lite

before = dict(os.environ)
scorer = cappy_lite.Scorer(sys.argv[1])
scorer.score("a", ["b"])
assert dict(os.environ) == before
"""


INTERRUPTED = """
import signal, sys
import cappy_lite

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
candidates = [f"the car number {number}" for number in range(500_000)]
scorer = cappy_lite.Scorer(sys.argv[1], threads=2)
expected = scorer.score("a", ["b", "c"])
print("scoring", flush=True)
try:
    scorer.score("a", candidates)
except KeyboardInterrupt:
    assert (scorer.score("a", ["b", "c"]) == expected).all()
    print("interrupted, and scores as before")
"""


def python(program: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    # From 3.12 on, Python warns of forks beside threads; these are what is tested.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def test_scorers_survive_forks(tiny_model: Path) -> None:
    done = python(FORKS, str(tiny_model))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scorers_and_their_scores_are_sent_to_spawned_processes(tiny_model: Path) -> None:
    scorer = Scorer(tiny_model, threads=1)
    instructions, groups = ["a", "b", "a"], [["c", "d"], ["c"], []]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(scorer.score, instructions, groups))
    for scores, instruction, group in zip(found, instructions, groups, strict=True):
        np.testing.assert_array_equal(scores, scorer.score(instruction, group))


def test_ctrl_c_ends_a_long_call(tiny_model: Path) -> None:
    """And leaves the scorer as it was."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tiny_model)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "scoring\n"
    time.sleep(1)  # of some dozen seconds
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "interrupted, and scores as before\n", "")


def test_scoring_prints_nothing_and_writes_no_file(tiny_model: Path, tmp_path: Path) -> None:
    # Nothing of this environment, where a variable could keep ONNX Runtime's telemetry from writing to the home folder.
    done = python(QUIET, str(tiny_model), env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_the_session_has_as_many_threads_as_asked(tiny_model: Path) -> None:
    for threads in (1, 3):
        options = Scorer(tiny_model, threads=threads)._engine._session._session.get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1


def test_the_default_is_all_that_the_process_may_keep_busy(tiny_model: Path) -> None:
    count = available_cpus()
    assert 1 <= count <= (os.cpu_count() or 1)
    assert Scorer(tiny_model)._engine._session._session.get_session_options().intra_op_num_threads == count


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # Version 2: alone, under a parent with less, without a limit, and in a container that doesn't mount its group.
        ("0::/app\n", {"app/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/app\n", {"app/cpu.max": "max 100000\n"}, math.inf),
        ("0::/docker/0123\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {}, math.inf),
        # Version 1, with its controllers in any company.
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ("1:cpu:/g\n", {"cpu/g/cpu.cfs_quota_us": "-1\n", "cpu/g/cpu.cfs_period_us": "100000\n"}, math.inf),
        (
            "2:cpuset:/x\n1:cpuacct,cpu:/g\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "80000\n", "cpu/cpu.cfs_period_us": "20000\n"},
            4.0,
        ),
        ("3:cpuset:/\n2:memory:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "1\n"}, math.inf),
    ],
)
def test_cgroup_quotas(tmp_path: Path, membership: str, files: dict[str, str], expected: float) -> None:
    write_files(tmp_path, files | {"membership": membership})
    assert cgroup_cpus(tmp_path / "membership", tmp_path) == expected


def test_no_cgroups_are_no_limit(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path / "nothing", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 4), (2.9, 2), (0.5, 1), (64.0, 4)])
def test_threads_stay_within_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5, 7}, raising=False)
    monkeypatch.setattr("cappy_lite.session.cgroup_cpus", lambda: quota)
    assert available_cpus() == expected


def test_threads_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("cappy_lite.session.cgroup_cpus", lambda: math.inf)
    assert available_cpus() == os.cpu_count()
