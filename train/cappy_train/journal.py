"""A journal of what a web model answered, so that nothing is asked, and paid for, twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from cappy_lite.errors import InputValueError


class Journal:
    """JSON Lines, each of which has an `id` and a `source` if it answers a question, and what it cost: `requests` and
    `tokens`, if any. The last line may be torn.

    requests, tokens: what was spent so far.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Opens a journal, or makes it; without a path it only counts.

        Sixteen bytes of memory are kept for each line that is there.

        Raises:
            InputValueError: it can't be read or written, or a line in it is damaged.
        """
        self.requests = self.tokens = 0
        self._path = path
        places: list[tuple[int, int]] = []
        if path is not None:
            try:
                # Unbuffered, so that a line is with the operating system as soon as it is written.
                self._file, self._reader = path.open("ab", buffering=0), path.open("rb")
            except OSError as error:
                raise InputValueError(f"{path} can't be read or written ({error})") from error
            try:
                places = list(self._places())
            except BaseException:
                self.close()
                raise
        digests = np.array([digest for digest, _ in places], np.uint64)
        order = np.argsort(digests, kind="stable")
        self._digests, self._offsets = digests[order], np.array([offset for _, offset in places], np.int64)[order]

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where each line that answers a question begins, behind the question's digest; a torn last line goes."""
        end = 0
        for number, line in enumerate(self._reader, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                return
            record = self._decoded(line, number)
            self._count(record)
            if "id" in record:
                yield _digest(record["id"], record["source"]), end
            end += len(line)

    def records(self, id: str, source: str) -> Iterator[dict[str, Any]]:
        """What had been written about a question when the journal was opened, in order."""
        digest = np.uint64(_digest(id, source))
        first, end = (int(self._digests.searchsorted(digest, side)) for side in ("left", "right"))
        for offset in self._offsets[first:end].tolist():
            self._reader.seek(offset)
            record: dict[str, Any] = json.loads(self._reader.readline())
            if (record["id"], record["source"]) == (id, source):
                yield record

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a line, which outlives this process from then on.

        Raises:
            InputValueError: it can't be written; the disk may be full.
        """
        self._count(record)
        if self._path is None:
            return
        rest = memoryview(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise InputValueError(f"{self._path} can't be written ({error}): make room, and run again") from error

    def sync(self) -> None:
        """Has what was written outlive the machine as well."""
        if self._path is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._path is not None:
            self._file.close()
            self._reader.close()

    def _decoded(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                return record
        except ValueError:
            pass
        raise InputValueError(f"{self._path}, line {number}: is damaged: delete the line; what it says is asked again")

    def _count(self, record: Mapping[str, Any]) -> None:
        self.requests += record.get("requests", 0)
        self.tokens += record.get("tokens", 0)


def _digest(id: str, source: str) -> int:
    return int.from_bytes(blake2b(json.dumps([id, source]).encode(), digest_size=8).digest())
