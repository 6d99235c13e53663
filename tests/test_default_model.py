"""The script that makes the default model: its stages fit together, and a second run goes on after the first."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "train" / "default_model"
# In place of each stage, once its arguments are read: they must be what it takes, and what it reads must be there.
STAGE = """#!{python}
import sys
from argparse import ArgumentParser
from pathlib import Path

from cappy_train.cli import main

ENCODER = "MiniLM-L6-H384"
parse_args = ArgumentParser.parse_args


def stage(parser, argv):
    values = vars(parse_args(parser, argv))
    for name in ("data", "default_data", "run", "dev", "model", "base", "notes"):
        inputs = values.get(name) or []
        for path in [inputs] if isinstance(inputs, (str, Path)) else inputs:
            assert path == ENCODER or Path(path).exists(), (name, path)
    networks = [text.rpartition("=") for text in values.get("networks") or []]
    for network, _, _ in networks:
        assert network == ENCODER or Path(network).exists(), network
    assert not networks or abs(sum(float(share) for _, _, share in networks) - 1) < 1e-9, networks
    with open({log!r}, "a") as log:
        print(argv[0], len(values["data"]) if argv[0] == "annotate" else "", sep="", file=log)
    if argv[0] == {stop!r}:
        sys.exit(1)
    out = Path(values["out"])
    if out.suffix:
        out.touch()
    else:
        out.mkdir(exist_ok=argv[0] not in ("distractors", "average", "export"))
    sys.exit()


ArgumentParser.parse_args = stage
main(sys.argv[1:])
"""
PASS = ["distractors", "annotate1", "pretrain", "average"]
LONG = [*["distractors"] * 5, "generator", "sample", "annotate6", *["pretrain"] * 3, "average"]


def run(tmp_path: Path, *, stop: str | None = None) -> tuple[int, list[str]]:
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    bin = tmp_path / "bin"
    bin.mkdir(exist_ok=True)
    (bin / "cappy-train").write_text(STAGE.format(python=sys.executable, log=str(log), stop=stop))
    (bin / "cappy-train").chmod(0o755)
    (tmp_path / "data sets").mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "data sets"), str(tmp_path / "work here")],
        env={**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    if stop is None:
        assert done.returncode == 0, done.stderr
    return done.returncode, log.read_text().split()


def test_each_stage_takes_what_the_ones_before_made(tmp_path: Path) -> None:
    assert run(tmp_path) == (0, [*PASS * 4, *LONG, "export"])
    assert (tmp_path / "work here" / "cappy-mini").is_dir()


def test_it_stops_where_a_stage_fails_and_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path, stop="pretrain") == (1, PASS[:3])
    # What was made at once isn't made again; stages that know where they stopped are asked again.
    assert run(tmp_path) == (0, [*PASS[1:], *PASS * 3, *LONG, "export"])
    assert run(tmp_path) == (0, [*["annotate1", "pretrain"] * 4, *LONG[5:-1]])
