"""A bare HTTP client of one job's lines in Loki, for the contract suite."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import requests

from tests.processes import wait_until

SECOND_NS = 10**9
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
TIMEOUT_S = 60  # a query that fails is tried again by Loki itself, for some seconds

Entry = tuple[int, str] | tuple[int, str, Mapping[str, str]]


class Found(NamedTuple):
    """One line as a query returns it; `labels` hold its structured metadata too."""

    ts_ns: int
    line: str
    labels: Mapping[str, str]


class LokiApi:
    """Pushes and queries the lines of a job that no other test has."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.job_id = str(uuid.uuid4().int % 10**15)
        self.now_ns = time.time_ns()

    def labels(self, **extra: str) -> dict[str, str]:
        """Return the labels of this job's stream, or of another one."""
        return {"job": "training", "job_id": self.job_id, "log_type": "stdout", "source": "backend", **extra}

    def push(self, *entries: Entry, **extra: str) -> requests.Response:
        """Push entries of one stream."""
        return self.push_streams((self.labels(**extra), entries))

    def push_streams(self, *streams: tuple[Mapping[str, str], Sequence[Entry]]) -> requests.Response:
        """Push several streams in one request."""
        return self.post(self.body(*streams))

    @staticmethod
    def body(*streams: tuple[Mapping[str, str], Sequence[Entry]]) -> bytes:
        """Return the body of a push."""
        push = {
            "streams": [
                {"stream": labels, "values": [[str(ts_ns), *rest] for ts_ns, *rest in entries]}
                for labels, entries in streams
            ]
        }
        return json.dumps(push).encode()

    def post(self, data: bytes, **headers: str) -> requests.Response:
        """Push bytes as they are."""
        headers = {"Content-Type": "application/json"} | headers
        return requests.post(f"{self.url}/loki/api/v1/push", data=data, headers=headers, timeout=TIMEOUT_S)

    def get(self, path: str, **parameters: str | int) -> requests.Response:
        """Get a path."""
        return requests.get(f"{self.url}{path}", params=parameters, timeout=TIMEOUT_S)

    def query_range(self, selector: str | None = None, **parameters: str | int) -> requests.Response:
        """Query this job's lines; the default range is the last two and a half hours."""
        # Loki asks its ingesters for the last three hours only: query_ingesters_within.
        asked: dict[str, str | int] = {
            "query": selector or f'{{job_id="{self.job_id}"}}',
            "start": self.now_ns - 150 * MINUTE_NS,
            "end": self.now_ns + MINUTE_NS,
            "limit": 1000,
            "direction": "forward",
        }
        return self.get("/loki/api/v1/query_range", **(asked | parameters))

    def find(self, selector: str | None = None, **parameters: str | int) -> list[Found]:
        """Query, and return the lines by time."""
        answer = self.query_range(selector, **parameters)
        assert answer.status_code == 200, answer.text
        return sorted(
            (
                Found(int(ts_ns), line, result["stream"])
                for result in answer.json()["data"]["result"]
                for ts_ns, line, *_ in result["values"]
            ),
            key=lambda found: (found.ts_ns, found.line),
        )

    def await_lines(self, *lines: str) -> list[Found]:
        """Wait until the job has exactly these lines, in any order, and return them."""
        wait_until(lambda: self._has(lines), f"the lines {sorted(lines)} of job {self.job_id}", timeout_s=10)
        return self.find()

    def delete(self, **parameters: str | int) -> requests.Response:
        """Request the deletion of this job's lines; the default range is the last ten minutes."""
        asked: dict[str, str | int] = {
            "query": f'{{job_id="{self.job_id}"}}',
            "start": (self.now_ns - 10 * MINUTE_NS) // SECOND_NS,
        }
        wanted = {name: value for name, value in (asked | parameters).items() if value != ""}
        return requests.post(f"{self.url}/loki/api/v1/delete", params=wanted, timeout=TIMEOUT_S)

    def flush(self) -> None:
        """Have Loki flush its ingesters to the store, which it would do half an hour after the last push."""
        assert requests.post(f"{self.url}/flush", timeout=TIMEOUT_S).status_code == 204

    def is_set(self, name: str, value: str) -> bool:
        """Return whether a setting in this Loki's configuration has the value."""
        found = re.search(rf"^\s*{name}: (\S+)", self.get("/config").text, flags=re.MULTILINE)
        return found is not None and found[1] == value

    def version(self) -> tuple[int, ...]:
        """Return the version of this Loki; a build without one counts as new."""
        answer: dict[str, Any] = self.get("/loki/api/v1/status/buildinfo").json()
        numbers = str(answer.get("version", "")).split("-")[0].split(".")
        return tuple(int(number) for number in numbers) if all(n.isdecimal() for n in numbers) else (999,)

    def _has(self, lines: Sequence[str]) -> bool:
        return sorted(found.line for found in self.find()) == sorted(lines)
