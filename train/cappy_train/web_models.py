"""Responses of a model behind an OpenAI-compatible web API, by the `openai` client.

What was answered is written into a journal at once, so that a job which was killed, or stopped at its spending limit,
asks nothing again. Nothing is connected to but the API's address (or the proxy that the environment names).
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from cappy_lite.arguments import check_count
from cappy_lite.errors import CappyError, InputValueError
from cappy_train.instances import Candidate, Instance
from cappy_train.journal import Journal
from cappy_train.sampling import MAX_NEW_TOKENS, PAPER, Advance, Decoding, Sampled, no_advance
from cappy_train.shards import Plan

# The paper's decodings that every such API offers: without beams and top-k.
OFFERED = tuple(decoding for decoding in PAPER if decoding.beams == 1 and decoding.top_k is None)
CONCURRENCY = 16
TIME_OUT = 120.0
JOURNAL = "journal.jsonl"
# Failures of one question on end before it, or the job, is given up; seconds between them double up to LONGEST_PAUSE.
ATTEMPTS = 8
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
# Where the API asks for a longer wait the job ends, to be gone on with later.
LONGEST_WAIT = 600.0
# Statuses that concern one question, once others were answered: too long, or unwanted.
REFUSALS = (400, 413, 422)
TEMPORARY = (408, 409, 425, 429)
# Questions that may be refused before the first answer.
REFUSED_FIRST = 3
# Tokens that a server may put around an instruction; together with its bytes they bound a prompt's tokens.
TEMPLATE_TOKENS = 256
# A log-probability that stands for an unknown one.
UNKNOWN = -9999.0


class LimitReached(InputValueError):
    """A spending limit was reached; what was answered is kept."""


class WebModel:
    """A `Sampler` of a model that an OpenAI-compatible API serves, asked by chat completions."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        key: str | None = None,
        decodings: Sequence[Decoding] = OFFERED,
        max_new_tokens: int = MAX_NEW_TOKENS,
        concurrency: int = CONCURRENCY,
        time_out: float = TIME_OUT,
        max_requests: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: the API's address, such as http://localhost:8000/v1.
            name: the model, as the API calls it.
            key: sent as a bearer token; None for servers that need none.
            decodings: how responses are chosen, without beams and top_k; their sources differ.
            max_new_tokens: the longest response.
            concurrency: requests at a time.
            time_out: seconds until a request counts as failed.
            max_requests: the most requests of a job, failed ones and those before an interruption included.
            max_tokens: the most tokens of a job, prompts and responses together, as the API counts them.

        Raises:
            InputValueError: an option is out of range, or the address or a decoding is of another kind.
        """
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputValueError(f"url is {url!r}: give an address such as http://localhost:8000/v1")
        if address.username is not None or address.query or address.fragment:
            raise InputValueError(
                "url has more than host and path: a key is given by itself, since shards name the url"
            )
        if not name:
            raise InputValueError("name is empty: give the model's name, as the API calls it")
        if not decodings or len({decoding.source for decoding in decodings}) < len(decodings):
            raise InputValueError("decodings should be one or more, with sources that differ")
        for decoding in decodings:
            if decoding.beams > 1 or decoding.top_k is not None:
                raise InputValueError(
                    f"an API offers no {decoding.source!r}: choose among decodings by temperature and top_p, such as "
                    f"{', '.join(one.source for one in OFFERED)}"
                )
        if not time_out > 0:
            raise InputValueError(f"time_out is {time_out}: give a number of seconds above 0")
        self._url, self._name, self._key = url, name, key
        self._decodings = tuple(decodings)
        self._max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        self._concurrency = check_count("concurrency", concurrency)
        self._time_out = time_out
        self._limits = _Limits(
            *(
                None if most is None else check_count(option, most)
                for option, most in (("max_requests", max_requests), ("max_tokens", max_tokens))
            )
        )
        self._dialect: _Dialect | None = None
        self._journal = Journal()

    @property
    def plan(self) -> Plan:
        """The API's address, the model's name, and the settings that responses depend on."""
        return {
            "url": self._url,
            "name": self._name,
            "decodings": [asdict(decoding) for decoding in self._decodings],
            "max_new_tokens": self._max_new_tokens,
        }

    @contextmanager
    def job(self, folder: Path) -> Iterator[None]:
        """In this block answers are kept in the folder's journal, and those that it has are not asked for again."""
        self._journal = Journal(folder / JOURNAL)
        try:
            yield
        finally:
            self._journal.close()
            self._journal = Journal()

    def sample(self, instances: Sequence[Instance], *, advance: Advance = no_advance) -> Sampled:
        """Candidates for some instances.

        A question that the API refuses, or fails on time and again while it answers others, gets none, and a note.

        Raises:
            LimitReached: a spending limit doesn't allow the next request.
            InputValueError: the API can't be reached, or refuses all questions; or the journal can't be written.
        """
        questions = [
            [_Question(instance, decoding, self._journal) for decoding in self._decodings] for instance in instances
        ]
        waiting = [question for asked in questions for question in asked if not question.complete]
        advance(sum(all(question.complete for question in asked) for asked in questions), 0)
        if waiting:
            beside = {id(question): asked for asked in questions for question in asked}

            def answered(question: _Question, tokens: int) -> None:
                advance(all(one.complete for one in beside[id(question)]) if question.complete else 0, tokens)

            _run(_Asking(self, waiting, answered).run())
            self._journal.sync()
        return Sampled(
            [[candidate for question in asked for candidate in question.candidates] for asked in questions],
            {
                "empty": sum(not one.text for asked in questions for question in asked for one in question.candidates),
                "refused": sum(question.refused is not None for asked in questions for question in asked),
            },
            [
                f"instance {question.instance.id!r}, {question.decoding.source}: {question.refused}"
                for asked in questions
                for question in asked
                if question.refused is not None
            ],
        )


@dataclass(frozen=True, slots=True)
class _Limits:
    requests: int | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What an API understands: the name of the length's limit, log-probabilities, several responses at a time."""

    length: str
    logprobs: bool
    several: bool


DIALECTS = tuple(
    _Dialect(*parts) for parts in product(("max_tokens", "max_completion_tokens"), (True, False), (True, False))
)


class _Question:
    """An instruction and a decoding, and what was answered so far; `refused` says why nothing more will be."""

    def __init__(self, instance: Instance, decoding: Decoding, journal: Journal) -> None:
        self.instance, self.decoding = instance, decoding
        self.candidates: list[Candidate] = []
        self.refused: str | None = None
        for record in journal.records(instance.id, decoding.source):
            self.refused = record.get("refused")
            self.candidates += [Candidate(source=decoding.source, **one) for one in record.get("responses", [])]

    @property
    def complete(self) -> bool:
        return self.refused is not None or len(self.candidates) >= self.decoding.samples


class _Refused(Exception):
    """The API won't answer this question, whatever it does with others."""


class _Failed(Exception):
    """A request failed in a way that another one may not; `wait`: seconds that the API asks to wait for."""

    def __init__(self, message: str, *, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(message)
        self.wait, self.busy = wait, busy


class _Stopped(Exception):
    """Another question's error ends the job."""


class _Asking:
    """One run of the event loop, in which questions are asked until all are complete or the job has to end."""

    def __init__(
        self, model: WebModel, waiting: Sequence[_Question], answered: Callable[[_Question, int], None]
    ) -> None:
        self._model, self._waiting, self._tell = model, waiting, answered
        self._journal, self._limits = model._journal, model._limits
        self._answers = 0
        self._failure: CappyError | None = None
        self._stopped, self._settled = asyncio.Event(), asyncio.Event()
        self._in_flight = self._reserved = 0
        self._not_before = 0.0

    async def run(self) -> None:
        # Redirects aren't followed, since they lead elsewhere. Retries and time-outs are this module's.
        client = openai.AsyncOpenAI(
            api_key=self._model._key or "none",
            base_url=self._model._url,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        async with client:
            pending = iter(self._waiting)
            if self._model._dialect is None:
                await self._find_dialect(client, pending)
            await asyncio.gather(*(self._work(client, pending) for _ in range(self._model._concurrency)))
        if self._failure is not None:
            raise self._failure

    async def _find_dialect(self, client: openai.AsyncOpenAI, pending: Iterator[_Question]) -> None:
        """Asks one question alone: an address, key or name that is wrong shows before others are asked."""
        refused: list[tuple[_Question, str]] = []
        for question in pending:
            reasons = []
            for dialect in DIALECTS:
                try:
                    await self._ask(client, question, dialect)
                except _Refused as error:
                    reasons.append(str(error))
                    continue
                self._model._dialect = dialect
                for other, reason in refused:
                    self._refuse(other, reason)
                await self._complete(client, question)
                return
            refused.append((question, reasons[0]))
            if len(refused) == REFUSED_FIRST:
                break
        question, reason = refused[0]
        raise InputValueError(
            f"{self._model._url} refuses to answer, first of instance {question.instance.id!r}: {reason}"
        )

    async def _work(self, client: openai.AsyncOpenAI, pending: Iterator[_Question]) -> None:
        for question in pending:
            try:
                await self._complete(client, question)
            except _Stopped:
                return
            except CappyError as error:
                # Requests of others that are under way are paid for: they come to their end.
                self._failure = self._failure or error
                self._stopped.set()
                return

    async def _complete(self, client: openai.AsyncOpenAI, question: _Question) -> None:
        assert self._model._dialect is not None
        try:
            while not question.complete:
                await self._ask(client, question, self._model._dialect)
        except _Refused as error:
            self._refuse(question, str(error))

    def _refuse(self, question: _Question, reason: str) -> None:
        question.refused = reason
        self._journal.write(_named(question) | {"refused": reason})
        self._tell(question, 0)

    async def _ask(self, client: openai.AsyncOpenAI, question: _Question, dialect: _Dialect) -> None:
        """Gets one answer, of as many responses as the API gives at a time."""
        failures, answers_before, answers_at_first = 0, self._answers, self._answers
        while True:
            count = question.decoding.samples - len(question.candidates) if dialect.several else 1
            instruction = question.instance.instruction
            bound = count * self._model._max_new_tokens + len(instruction.encode(errors="replace")) + TEMPLATE_TOKENS
            await self._rest(self._not_before - time.monotonic())
            await self._reserve(bound)
            try:
                responses, tokens = await self._request(client, question, dialect, count)
            except _Refused:
                self._journal.write({"requests": 1})
                raise
            except _Failed as failure:
                self._journal.write({"requests": 1, "failed": str(failure)})
                if failure.busy and self._answers > answers_before:
                    failures = 0  # the others' answers are what it is busy with
                answers_before = self._answers
                failures += 1
                if failures == ATTEMPTS:
                    if self._answers > answers_at_first:
                        raise _Refused(f"failed {ATTEMPTS} times, at last: {failure}") from failure
                    raise InputValueError(
                        f"{self._model._url} failed {ATTEMPTS} times, at last: {failure}. What was answered is kept: "
                        "the same command goes on"
                    ) from failure
                await self._rest(self._pause(failure, failures))
                continue
            finally:
                self._in_flight -= 1
                self._reserved -= bound
                self._settled.set()
            tokens = bound if tokens is None else tokens
            record = {"requests": 1, "tokens": tokens, "responses": responses[:count]}
            self._journal.write(_named(question) | record)
            question.candidates += [Candidate(source=question.decoding.source, **one) for one in responses[:count]]
            self._answers += 1
            self._tell(question, tokens)
            return

    async def _request(
        self, client: openai.AsyncOpenAI, question: _Question, dialect: _Dialect, count: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """The responses, by the names of `Candidate`, and the tokens that they cost, if the API says so."""
        decoding = question.decoding
        options: dict[str, Any] = {dialect.length: self._model._max_new_tokens}
        if dialect.logprobs:
            options["logprobs"] = True
        if dialect.several:
            options["n"] = count
        try:
            async with asyncio.timeout(self._model._time_out):
                raw = await client.chat.completions.with_raw_response.create(
                    model=self._model._name,
                    messages=[{"role": "user", "content": question.instance.instruction}],
                    temperature=decoding.temperature,
                    top_p=1.0 if decoding.top_p is None else decoding.top_p,
                    **options,
                )
            return _parsed(raw.http_response.json())
        except TimeoutError:
            raise _Failed(f"no answer within {self._model._time_out:g} s") from None
        except openai.APIStatusError as error:
            raise self._explained(error) from error
        except openai.APIConnectionError as error:
            raise _Failed(f"no connection ({error.__cause__ or error})") from error
        except ValueError as error:
            raise _Failed(f"the answer is no chat completion ({error})") from error

    def _explained(self, error: openai.APIStatusError) -> Exception:
        status, said = error.status_code, f"{error.status_code}, {_short(error.message)}"
        unpaid = error.code == "insufficient_quota"
        if (status in TEMPORARY and not unpaid) or status >= 500:
            return _Failed(said, wait=_retry_after(error.response.headers), busy=status == 429)
        if status in REFUSALS:
            return _Refused(said)
        fix = "look at what it says"
        if status in (401, 403):
            fix = "give a key that is valid there" if self._model._key else "it wants a key, and none was given"
        elif status == 404:
            fix = f"is {self._model._name!r} a model there, and the address complete (many end in /v1)?"
        elif status < 400:
            fix = "give the address that it redirects to, if you trust it"
        return InputValueError(f"{self._model._url} refuses ({said}): {fix}")

    def _pause(self, failure: _Failed, failures: int) -> float:
        """Seconds before the next attempt: what the API asks for, or longer each time; and a part at random, so that
        many that failed together don't come back together."""
        if failure.wait is None:
            return min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
        if failure.wait > LONGEST_WAIT:
            raise InputValueError(
                f"{self._model._url} asks to wait for {failure.wait:,.0f} s ({failure}). What was answered is kept: "
                "the same command goes on"
            )
        self._not_before = max(self._not_before, time.monotonic() + failure.wait)
        return failure.wait + random.uniform(0, FIRST_PAUSE)

    async def _rest(self, seconds: float) -> None:
        """Waits so long, unless the job ends."""
        if not self._stopped.is_set() and seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), seconds)
        if self._stopped.is_set():
            raise _Stopped

    async def _reserve(self, tokens: int) -> None:
        """Waits until the limits allow a request of at most so many tokens, whatever those under way will cost."""
        most = self._limits
        while True:
            spent, bound = self._journal.requests + self._in_flight, self._journal.tokens + self._reserved + tokens
            if (most.requests is None or spent < most.requests) and (most.tokens is None or bound <= most.tokens):
                self._in_flight += 1
                self._reserved += tokens
                return
            if not self._in_flight:
                raise LimitReached(
                    f"the spending limit is reached: {self._journal.requests:,} requests and {self._journal.tokens:,} "
                    f"tokens are spent, and the next one may take {tokens:,}. What was answered is kept: give a higher "
                    "--max-requests or --max-tokens, and the same command goes on"
                )
            self._settled.clear()
            await self._settled.wait()
            await self._rest(0)


def _named(question: _Question) -> dict[str, Any]:
    return {"id": question.instance.id, "source": question.decoding.source}


def _parsed(body: Any) -> tuple[list[dict[str, Any]], int | None]:
    """The responses of a chat completion, by the names of `Candidate`, and the tokens that it cost, if it says so.

    Raises:
        ValueError: it is none.
    """
    try:
        responses = [_response(choice) for choice in body["choices"]]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}") from error
    if not responses:
        raise ValueError("it has no choices")
    usage = body.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return responses, tokens if isinstance(tokens, int) and tokens >= 0 else None


def _response(choice: dict[str, Any]) -> dict[str, Any]:
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise ValueError("a choice's content is no text")
    response: dict[str, Any] = {"text": text.encode(errors="replace").decode().strip()}
    parts = (choice.get("logprobs") or {}).get("content") or []
    likelihoods = [part["logprob"] for part in parts]
    if likelihoods and all(isinstance(one, int | float) and UNKNOWN < one < math.inf for one in likelihoods):
        response["log_likelihood"] = math.fsum(likelihoods)
        response["mean_log_likelihood"] = math.fsum(likelihoods) / len(likelihoods)
    return response


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of the header Retry-After (RFC 9110): so many, or until a date."""
    value = headers.get("retry-after", "")
    try:
        return max(float(value), 0.0) if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _short(message: str) -> str:
    return textwrap.shorten(message, 300, placeholder=" ...")


def _run(asking: Coroutine[Any, Any, None]) -> None:
    """Runs to the end, in a thread of its own where the caller has a running event loop: a notebook, for example."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(asking)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, asking).result()
