"""Tests of the twin of Loki alone: faults, stops, tenants, its clock, and the settings of a real Loki."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import requests

from tests.processes import ROOT
from tests.twins.loki import FOREVER, Fault, Limits, LokiTwin

SECOND_NS = 10**9
DAY_NS = 24 * 3600 * SECOND_NS


@pytest.fixture
def twin() -> Iterator[LokiTwin]:
    """A running twin."""
    with LokiTwin() as twin:
        yield twin


def push(
    url: str, *lines: str, ts_ns: int = 0, tenant: str = "", timeout_s: float = 5, labels: object = None
) -> requests.Response:
    """Push lines of job 1, one nanosecond apart."""
    start_ns = ts_ns or time.time_ns()
    values = [[str(start_ns + n), line] for n, line in enumerate(lines)]
    body = {"streams": [{"stream": {"job_id": "1"} if labels is None else labels, "values": values}]}
    headers = {"X-Scope-OrgID": tenant} if tenant else {}
    return requests.post(f"{url}/loki/api/v1/push", json=body, headers=headers, timeout=timeout_s)


def texts(twin: LokiTwin, tenant: str = "fake") -> list[str]:
    """Return the stored lines of job 1."""
    return [line.line for line in twin.lines(1, tenant)]


@pytest.mark.parametrize("status", [260, 401, 403, 404, 429, 500, 503])
def test_answers_a_status_and_stores_nothing(twin: LokiTwin, status: int) -> None:
    """A status set for a number of requests is answered that often without storing; then pushes work again."""
    twin.fail_with(status, times=2)
    assert [push(twin.url, "x").status_code for _ in range(3)] == [status, status, 204]
    assert texts(twin) == ["x"]


def test_sends_retry_after_only_when_configured(twin: LokiTwin) -> None:
    """A 429 has Retry-After if the test set one."""
    twin.fail_with(429, retry_after=7)
    twin.fail_with(429)
    assert push(twin.url, "x").headers["Retry-After"] == "7"
    assert "Retry-After" not in push(twin.url, "x").headers


def test_loses_its_answer_after_it_stored(twin: LokiTwin) -> None:
    """A lost answer is a cut connection with the line stored; the resend is a duplicate."""
    twin.faults.append(Fault("lost_answer"))
    now_ns = time.time_ns()
    with pytest.raises(requests.ConnectionError):
        push(twin.url, "x", ts_ns=now_ns)
    assert texts(twin) == ["x"]
    assert push(twin.url, "x", ts_ns=now_ns).status_code == 204
    assert texts(twin) == ["x"]
    assert twin.stats()["duplicates"] == 1


def test_cuts_before_it_stores(twin: LokiTwin) -> None:
    """A push whose connection is cut stores nothing."""
    twin.faults.append(Fault("cut"))
    with pytest.raises(requests.ConnectionError):
        push(twin.url, "x")
    assert texts(twin) == []


def test_hangs_until_the_client_times_out(twin: LokiTwin) -> None:
    """A hanging push neither answers nor stores, and does not delay the twin's end."""
    twin.faults.append(Fault("hang"))
    with pytest.raises(requests.Timeout):
        push(twin.url, "x", timeout_s=0.1)
    assert texts(twin) == []


def test_answers_slowly(twin: LokiTwin) -> None:
    """A slow push is stored and answered after its delay; others are not delayed."""
    twin.faults.append(Fault("slow", delay_s=0.3))
    with pytest.raises(requests.Timeout):
        push(twin.url, "slow", timeout_s=0.1)
    assert push(twin.url, "quick").status_code == 204


def test_faults_of_queries_spare_pushes(twin: LokiTwin) -> None:
    """A fault applies only to its kind of request."""
    twin.faults.append(Fault(status=500, times=FOREVER, on="query"))
    assert push(twin.url, "x").status_code == 204
    assert requests.get(f"{twin.url}/loki/api/v1/query_range", timeout=5).status_code == 500
    twin.faults.clear()
    assert requests.get(f"{twin.url}/ready", timeout=5).status_code == 200


def test_stops_and_starts_on_the_same_port(twin: LokiTwin) -> None:
    """A stopped twin refuses new and kept-alive connections; started again it has its lines and its port."""
    with requests.Session() as session:
        assert session.get(f"{twin.url}/ready", timeout=5).status_code == 200
        push(twin.url, "before")
        twin.stop()
        with pytest.raises(requests.ConnectionError):
            session.get(f"{twin.url}/ready", timeout=5)
        twin.start()
        assert session.get(f"{twin.url}/ready", timeout=5).status_code == 200
    push(twin.url, "after")
    assert texts(twin) == ["before", "after"]


def test_keeps_tenants_apart(twin: LokiTwin) -> None:
    """Each X-Scope-OrgID has lines of its own."""
    push(twin.url, "a", tenant="team-a")
    push(twin.url, "b", tenant="team-b")
    assert (texts(twin, "team-a"), texts(twin, "team-b"), texts(twin)) == (["a"], ["b"], [])


def test_asks_for_a_password() -> None:
    """With basic auth a request without it is answered with 401."""
    with LokiTwin(auth=("user", "secret")) as twin:
        ready = f"{twin.url}/ready"
        assert requests.get(ready, timeout=5).status_code == 401
        assert requests.get(ready, auth=("user", "secret"), timeout=5).status_code == 200


def test_lives_by_the_clock_it_is_given() -> None:
    """A line that is accepted today is too old eight days later."""
    now_ns = [time.time_ns()]
    with LokiTwin(now_ns=lambda: now_ns[0]) as twin:
        assert push(twin.url, "a", ts_ns=now_ns[0]).status_code == 204
        now_ns[0] += 8 * DAY_NS
        answer = push(twin.url, "b", ts_ns=now_ns[0] - 8 * DAY_NS)
        assert (answer.status_code, "timestamp too old" in answer.text) == (400, True)
        assert push(twin.url, "c", ts_ns=now_ns[0]).status_code == 204


def test_refuses_bodies_and_messages_beyond_its_limits() -> None:
    """A body over the HTTP limit is a 413; a message over the internal limit is a 500 at every retry."""
    with LokiTwin(limits=Limits(max_body_bytes=2000, max_message_bytes=1000)) as twin:
        assert push(twin.url, "x" * 3000).status_code == 413
        answer = push(twin.url, "x" * 1500)
        assert (answer.status_code, "ResourceExhausted" in answer.text) == (500, True)
        assert texts(twin) == []


def test_a_loki_before_3_7_merges_equal_lines() -> None:
    """Before 3.7.0 equal lines in one nanosecond are one, with any metadata (grafana/loki#21039)."""
    now_ns = str(time.time_ns())
    values = [[now_ns, "same", {"seq": "1"}], [now_ns, "same", {"seq": "2"}]]
    body = {"streams": [{"stream": {"job_id": "1"}, "values": values}]}
    with LokiTwin(limits=Limits(metadata_tells_lines_apart=False)) as twin:
        assert requests.post(f"{twin.url}/loki/api/v1/push", json=body, timeout=5).status_code == 204
        assert texts(twin) == ["same"]


def test_streams_without_labels() -> None:
    """Loki gives a stream without labels a service name, or refuses it if that is disabled."""
    with LokiTwin() as twin:
        assert push(twin.url, "x", labels={}).status_code == 204
    with LokiTwin(limits=Limits(discovers_service_name=False)) as twin:
        answer = push(twin.url, "x", labels={})
        assert (answer.status_code, answer.text) == (
            400,
            "error at least one label pair is required per stream\n",
        )


def test_counts_requests_and_lines(twin: LokiTwin) -> None:
    """Requests, pushes, lines and their results are counted."""
    now_ns = time.time_ns()
    for _ in range(2):
        push(twin.url, "a", "b", ts_ns=now_ns)
    push(twin.url, "old", ts_ns=now_ns - 8 * DAY_NS)
    stats = twin.stats()
    assert {name: stats[name] for name in ["requests", "pushes", "lines", "stored", "duplicates", "refused"]} == {
        "requests": 3, "pushes": 3, "lines": 5, "stored": 2, "duplicates": 2, "refused": 1
    }  # fmt: skip
    assert stats["statuses"] == {"204": 2, "400": 1}


def test_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    """As a process it prints its address, takes faults and shows its lines and counts over HTTP."""
    command = [sys.executable, "-m", "tests.twins.loki"]
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            fault = json.dumps({"kind": "status", "status": 503, "times": 1})
            assert requests.post(f"{url}/twin/faults", data=fault, timeout=5).status_code == 204
            assert [push(url, "x").status_code for _ in range(2)] == [503, 204]
            entries = requests.get(f"{url}/twin/entries", params={"job_id": "1"}, timeout=5).json()
            assert [(entry["line"], entry["labels"]) for entry in entries] == [("x", {"job_id": "1"})]
            assert requests.get(f"{url}/twin/stats", timeout=5).json()["pushes"] == 2
        finally:
            process.kill()


@pytest.mark.parametrize(("deletion", "status"), [("off", 404), ("disabled", 403)])
def test_does_not_delete_unless_it_is_configured(deletion: Literal["off", "disabled"], status: int) -> None:
    """Without a compactor that deletes the path does not exist; a tenant may be excluded."""
    with LokiTwin(limits=Limits(deletion=deletion)) as twin:
        push(twin.url, "a")
        asked = {"query": '{job_id="1"}', "start": "1500000000"}
        answer = requests.post(f"{twin.url}/loki/api/v1/delete", params=asked, timeout=5)
        assert (answer.status_code, texts(twin)) == (status, ["a"])


def test_deletes_the_lines_of_a_range() -> None:
    """Matching lines are deleted and may be pushed again; later lines and other streams stay."""
    now_ns = time.time_ns() // SECOND_NS * SECOND_NS
    with LokiTwin(limits=Limits(deletion="filter-and-delete")) as twin:
        push(twin.url, "a", ts_ns=now_ns - 20 * SECOND_NS)
        push(twin.url, "b", ts_ns=now_ns - 10 * SECOND_NS)
        push(twin.url, "other", ts_ns=now_ns - 20 * SECOND_NS, labels={"job_id": "10"})
        start, end = (str(now_ns // SECOND_NS - age) for age in (60, 15))
        asked = {"query": '{job_id="1"}', "start": start, "end": end}
        assert requests.post(f"{twin.url}/loki/api/v1/delete", params=asked, timeout=5).status_code == 204
        assert (texts(twin), len(twin.lines())) == (["b"], 2)
        push(twin.url, "a", ts_ns=now_ns - 20 * SECOND_NS)
        assert texts(twin) == ["a", "b"]
