"""A web API as OpenAI's, over HTTP on this machine, in front of a small model; it fails where it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cappy_train.instances import Instance
from cappy_train.local_models import LocalModel
from cappy_train.sampling import Decoding

MODEL, KEY = "tiny", "a key"


class Api(ThreadingHTTPServer):
    """Answers the same question alike each time.

    faults: what becomes of the next requests, one each: a status; "stall", "drop", "garbage", "shapeless" or "none".
    headers: sent with every refusal.
    logprobs, most: whether it gives log-probabilities, and the most choices at a time.
    unknown: parameters that it refuses by 400.
    poison: a text; a question with it is answered by `poison_status`.
    usage: whether it says how many tokens were used.
    answered: how many choices each question (instruction, temperature, top_p) was given.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.faults: list[int | str] = []
        self.headers: dict[str, str] = {}
        self.logprobs, self.usage, self.most = True, True, 100
        self.unknown: set[str] = set()
        self.poison, self.poison_status = "no instruction has this", 400
        self.delay = 0.0
        self.answered: Counter[tuple[str, float, float]] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most_at_a_time = self._now = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._models: dict[tuple[float, float, int], LocalModel] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are no news."""

    def next_fault(self, body: dict[str, Any]) -> int | str:
        with self.lock:
            self.requests.append(body)
            self.times.append(time.monotonic())
            return self.faults.pop(0) if self.faults else "none"

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self._now += 1
            self.most_at_a_time = max(self.most_at_a_time, self._now)
        try:
            yield
        finally:
            with self.lock:
                self._now -= 1

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        instruction, count = body["messages"][0]["content"], min(body.get("n", 1), self.most)
        temperature, top_p = body["temperature"], body.get("top_p", 1.0)
        settings = (temperature, top_p, count)
        length = body.get("max_tokens") or body["max_completion_tokens"]
        with self.lock:
            if settings not in self._models:
                decoding = Decoding("x", count, temperature=temperature, top_p=top_p)
                self._models[settings] = LocalModel(
                    self.folder, decodings=[decoding], max_new_tokens=length, precision="float32"
                )
            one = Instance(instruction, "t", None, instruction, ("x",), (), None, "train")
            candidates = self._models[settings].sample([one]).candidates[0]
            self.answered[instruction, temperature, top_p] += count
        choices = []
        for candidate in candidates:
            assert candidate.log_likelihood is not None
            assert candidate.mean_log_likelihood is not None
            tokens = round(candidate.log_likelihood / candidate.mean_log_likelihood)
            logprobs = {"content": [{"token": "?", "logprob": candidate.mean_log_likelihood}] * tokens}
            choice = {"message": {"role": "assistant", "content": candidate.text + " "}, "finish_reason": "stop"}
            choices.append(choice | ({"logprobs": logprobs} if self.logprobs and body.get("logprobs") else {}))
        usage = {"usage": {"total_tokens": len(instruction.split()) + 10 * count}} if self.usage else {}
        return {"object": "chat.completion", "model": MODEL, "choices": choices} | usage


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_POST(self) -> None:
        with self.server.counted():
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = self.server.next_fault(body)
            time.sleep(self.server.delay)
            if self.path != "/v1/chat/completions" or body["model"] != MODEL:
                self._send(404, {"error": {"message": "no such model"}})
            elif self.headers["Authorization"] != f"Bearer {KEY}":
                self._send(401, {"error": {"message": "wrong key"}})
            elif unknown := self.server.unknown & set(body):
                self._send(400, {"error": {"message": f"unknown parameter {min(unknown)}"}})
            elif self.server.poison in body["messages"][0]["content"]:
                self._send(self.server.poison_status, {"error": {"message": "too long"}})
            elif isinstance(fault, int):
                self._send(fault, {"error": {"message": "on purpose", "code": "x"}}, self.server.headers)
            elif fault == "stall":
                self.server.ended.wait()
            elif fault == "drop":
                self.close_connection = True
                self.connection.close()
            elif fault == "garbage":
                self._send_bytes(200, b'{"choices": [{"mess')
            elif fault == "shapeless":
                self._send(200, {"choices": [{"text": 7}]})
            else:
                self._send(200, self.server.completion(body))

    def _send(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(value).encode(), headers)

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@contextmanager
def serving(model: Path) -> Iterator[Api]:
    """An API in front of a model's folder, on a thread of its own within the block."""
    server = Api(model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
