"""`trainwire mcp` as a process, used by the client of the official package, over a gateway and on Postgres."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from anyio.from_thread import start_blocking_portal
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult, TextContent, Tool
from sqlalchemy import insert, update

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, completion, drain, logs
from tests.gateway_server import GatewayServer
from tests.processes import wait_until
from trainwire.cli.mcp_tools.answers import NOTICE
from trainwire.cli.mcp_tools.server import TOOLS
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import training_attempts, training_jobs
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import Logs, Metrics, Point
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

CALL_S = 60.0
_jobs = count(8100)


class Agent:
    """The official client with a `trainwire mcp` process, until the block ends."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self._parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "trainwire", "mcp"],
            env={"XDG_STATE_HOME": str(folder), "XDG_DATA_HOME": str(folder), **environ},
            cwd=folder,
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        client = Client(self._parameters, read_timeout_seconds=CALL_S)
        self._client = self._stack.enter_context(self._portal.wrap_async_context_manager(client))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tools(self) -> list[Tool]:
        """Return the tools that the server lists."""
        return self._portal.call(self._client.list_tools).tools

    def result(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool."""
        result: CallToolResult = self._portal.call(self._client.call_tool, tool, arguments)
        return result

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer of a tool, whose text and data are the same."""
        result = self.result(tool, arguments)
        assert not result.is_error, text_of(result)
        document: dict[str, Any] = json.loads(text_of(result))
        assert document == result.structured_content
        assert document["notice"] == NOTICE
        return document

    def error(self, tool: str, **arguments: Any) -> str:
        """Return the text of a tool's error."""
        result = self.result(tool, arguments)
        assert result.is_error
        return text_of(result)


def text_of(result: CallToolResult) -> str:
    """Return the text of a result."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.fixture(scope="module", params=["http", "postgres"])
def _agent(
    request: pytest.FixtureRequest,
    _gateway: GatewayServer,
    database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Agent]:
    environ = {"TRAINWIRE_URL": _gateway.url} if request.param == "http" else {"DATABASE_URL": database_url}
    with Agent(tmp_path_factory.mktemp("agent"), **environ) as agent:
        yield agent


@pytest.fixture
def agent(_agent: Agent, resources: Resources) -> Agent:  # noqa: ARG001 - empties the stores
    """An agent whose server reads from a gateway, and one whose server reads from Postgres, both empty."""
    return _agent


@pytest.fixture
def job(sender: Sender, resources: Resources) -> int:
    """A failed job, whose loss became NaN at step 7, with a traceback, a log and checkpoints."""
    number = next(_jobs)
    sender.send(Metrics(name=f"digits-{number}", params={"lr": 0.1, "opt": {"name": "adam"}}), job=number)
    points = [
        Point(ts=NOW_NS + step * SECOND_NS, step=step, values={"loss": math.nan if step >= 7 else 1 / (step + 1)})
        for step in range(10)
    ]
    sender.send(Metrics(points=points), job=number)
    sender.send(logs(*(f"step {step}" for step in range(100))), job=number)
    errors = ["Traceback (most recent call last):", '  File "train.py", line 3', "ValueError: NaN in loss"]
    times = [NOW_NS + SECOND_NS + at for at in range(3)]
    sender.send(Logs(log_type="stderr", lines=errors, ts=times, levels=[None, None, "ERROR"]), job=number)
    for epoch in range(3):
        sender.send(checkpoint(f"s3://bucket/{epoch}.pt", kind="last", epoch=epoch), job=number)
    sender.send(completion("failed", exit_code=137, error_message="ValueError: NaN in loss"), job=number)
    for kind in ("metrics", "logs", "checkpoints", "completions"):
        drain(resources, kind, number)
    return number


def test_an_agent_finds_out_why_a_job_failed(agent: Agent, job: int) -> None:
    """The findings, the traceback, the last lines of stderr, the metric that became NaN, and the checkpoint."""
    found = agent.call("why_failed", job="last")
    assert found["job"] == {"id": job, "name": f"digits-{job}", "status": "failed", "attempt": 1}
    assert found["findings"][:3] == [
        "exit code 137: ended by signal 9 (SIGKILL); often the kernel's out-of-memory killer, or a scheduler's "
        "limit",
        "reported error: ValueError: NaN in loss",
        "metric loss became NaN at step 7, seq 8",
    ]
    assert found["traceback"].splitlines()[-1] == "ValueError: NaN in loss"
    assert [line["text"] for line in found["last_stderr_lines"]][-1] == "ValueError: NaN in loss"
    assert [line["level"] for line in found["last_error_lines"]] == ["ERROR"]
    assert found["metrics_at_end"] == {"loss": "NaN"}
    assert found["metrics_not_finite"][0]["not_finite"] == 3
    assert found["checkpoint_to_resume_from"] == "s3://bucket/2.pt"
    assert "messages produced" in found["completeness"]
    assert found["left_out"] == ["100 other log lines: search_log or log_around"]


def test_a_lost_job_has_its_last_heartbeat(agent: Agent, job: int, resources: Resources) -> None:
    """The time of the newest message is among the findings; a running job has not failed."""
    at = to_datetime(NOW_NS)
    lost = {"status": "lost", "last_seen_at": at, "exit_code": None, "status_reason": "no heartbeat for 60 s"}
    with resources.engine.begin() as connection:
        connection.execute(update(training_jobs).values(**lost, error_message=None))
    finding = agent.call("why_failed", job=str(job))["findings"][0]
    assert finding.startswith("lost: the newest heartbeat or message is of 2026-09-21T14:13:20.123Z, ")
    assert "(no heartbeat for 60 s); no end was reported" in finding
    with resources.engine.begin() as connection:
        connection.execute(update(training_jobs).values(status="running"))
    assert agent.call("why_failed", job=job)["findings"][0] == "the job has not failed: its status is running"


def test_jobs_are_listed_in_pages(agent: Agent, resources: Resources) -> None:
    """The filter, sort order and columns are those of docs/filters.md; the answer names the next page."""
    rows = [
        {"id": number, "name": f"run-{number}", "status": "failed", "params": {"lr": number / 4}}
        for number in range(1, 6)
    ]
    with resources.engine.begin() as connection:
        connection.execute(insert(training_jobs), rows)
    asked: dict[str, Any] = {"filter": "params.lr >= 0.5", "sort": "-params.lr", "columns": ["params.lr"]}
    first = agent.call("list_jobs", **asked, limit=3)
    assert [(found["id"], found["columns"]) for found in first["jobs"]] == [
        (5, {"params.lr": 1.25}),
        (4, {"params.lr": 1.0}),
        (3, {"params.lr": 0.75}),
    ]
    assert (first["matching"], first["left_out"]) == (4, ["more jobs match: repeat with cursor=`next`"])
    rest = agent.call("list_jobs", **asked, limit=3, cursor=first["next"])
    assert ([found["id"] for found in rest["jobs"]], rest["left_out"]) == ([2], [])
    assert agent.call("job_fields")["params_fields"] == ["lr"]
    assert "unknown field `parms.lr`" in agent.error("list_jobs", filter="parms.lr > 1")
    assert "cursor=" in agent.error("list_jobs", cursor="x")


def test_a_job_is_described(agent: Agent, job: int, resources: Resources) -> None:
    """State, parameters, metrics, completeness and provenance; large parts are cut, with the remedy."""
    with resources.engine.begin() as connection:
        packages = [f"package{number}" for number in range(150)]
        connection.execute(update(training_attempts).values(provenance={"packages": packages, "host": "gpu-1"}))
    found = agent.call("get_job", job=f"digits-{job}")
    assert (found["job"]["id"], found["exit_code"], found["params"]["opt"]) == (job, 137, {"name": "adam"})
    assert found["rows"] == {"logs": 103, "metrics": 10, "checkpoints": 3}
    assert found["provenance"]["host"] == "gpu-1"
    assert len(found["provenance"]["packages"]) == 100
    assert "provenance.packages: 50 of 150 entries" in found["left_out"]
    assert found["left_out"][-1] == "entries are missing where noted: repeat with max_items=150"
    whole = agent.call("get_job", job=job, parts=["provenance"], max_items=150)
    assert (len(whole["provenance"]["packages"]), whole["left_out"]) == (150, [])
    assert "params" not in whole
    assert agent.call("get_job", job=job, parts=["provenance"], attempt=2)["provenance"] == {}


def test_the_history_of_a_metric_is_whole_or_names_the_rest(agent: Agent, job: int) -> None:
    """All points in order, page by page; or pieces with extremes; the summary is of all points."""
    (loss,) = agent.call("metric_history", job=job, names=["loss"])["metrics"]
    assert [point[1] for point in loss["points"]] == list(range(10))
    assert loss["points"][0] == [1, 0, None, "2026-09-21T14:13:20.123Z", 1.0]
    assert loss["points"][9][4] == "NaN"
    assert (loss["summary"]["points"], loss["summary"]["not_finite"]) == (10, 3)
    assert loss["summary"]["min"]["step"] == 6
    assert loss["summary"]["first_not_finite"]["step"] == 7
    first = agent.call("metric_history", job=job, names=["loss"], limit=4)
    assert first["left_out"] == ["6 points of loss: repeat with after_seq=4, or pieces=50"]
    rest = agent.call("metric_history", job=job, names=["loss"], after_seq=4)
    assert [point[0] for point in rest["metrics"][0]["points"]] == [5, 6, 7, 8, 9, 10]
    pieces = agent.call("metric_history", job=job, names=["loss"], pieces=2)
    assert pieces["columns"][:4] == ["first_seq", "first_step", "last_step", "points"]
    assert [piece[:4] for piece in pieces["metrics"][0]["pieces"]] == [[1, 0, 4, 5], [6, 5, 9, 5]]
    assert pieces["metrics"][0]["pieces"][1][4:] == [1 / 6, 1 / 7, 1 / 6, "NaN", 3]
    error = agent.error("metric_history", job=job, names=["los"])
    assert f"job {job} has no metric 'los'; it has loss: metric_names(job={job}) lists all" in error
    assert agent.call("metric_history", job=job, names=["loss"], rank=3)["metrics"][0]["summary"]["points"] == 0


def test_points_of_ranks_and_attempts_are_told_apart(
    agent: Agent, job: int, sender: Sender, resources: Resources
) -> None:
    """With several ranks or attempts, each point has its own, and the summary lists them."""
    sender.send(
        Metrics(points=[Point(ts=NOW_NS, step=0, values={"loss": 5.0})], rank=1), job=job, source="1-t", attempt=2
    )
    drain(resources, "metrics", job)
    found = agent.call("metric_history", job=job, names=["loss"])
    assert found["columns"][-2:] == ["attempt", "rank"]
    assert found["metrics"][0]["points"][-1][-2:] == [2, 1]
    assert found["metrics"][0]["summary"]["attempts"] == [1, 2]
    (newest,) = agent.call("metric_history", job=job, names=["loss"], attempt=2)["metrics"]
    assert newest["summary"]["max"]["value"] == 5.0


def test_names_of_metrics_in_pages(agent: Agent, job: int, sender: Sender, resources: Resources) -> None:
    """A pattern chooses; the answer names the place where to go on."""
    values = {f"val/{number:03}": 1.0 for number in range(30)}
    sender.send(Metrics(points=[Point(ts=NOW_NS, values=values)]), job=job)
    drain(resources, "metrics", job)
    first = agent.call("metric_names", job=job, pattern="val/*", limit=20)
    assert (first["matching"], len(first["names"])) == (30, 20)
    assert first["left_out"] == ["10 names: repeat with after='val/019'"]
    assert agent.call("metric_names", job=job, after="val/028")["names"] == ["val/029"]


def test_jobs_are_compared(agent: Agent, job: int, sender: Sender, resources: Resources) -> None:
    """Parameters that differ, final and best values; equal parameters are counted."""
    other = next(_jobs)
    sender.send(Metrics(name="other", params={"lr": 0.5, "opt": {"name": "adam"}}), job=other)
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={"loss": 0.25, "acc": 0.5})]), job=other)
    sender.send(completion(final_metrics={"loss": 0.125}, best_metrics={"acc": 0.75}), job=other)
    drain(resources, "metrics", other)
    drain(resources, "completions", other)
    found = agent.call("compare_jobs", jobs=[job, "other"])
    assert [each["id"] for each in found["jobs"]] == [job, other]
    assert found["params"] == {"lr": [0.1, 0.5]}
    assert found["final_metrics"] == {"loss": ["NaN", 0.125], "accuracy": [None, 0.5]}
    assert found["best_metrics"] == {"accuracy": [None, 0.75]}
    assert found["left_out"] == ["1 parameters that are equal: repeat with equal_params=true"]
    all_of = agent.call("compare_jobs", jobs=[str(job), "other"], equal_params=True, metrics="acc*")
    assert (all_of["params"]["opt.name"], [*all_of["final_metrics"]]) == (["adam", "adam"], ["accuracy"])
    assert "jobs" in agent.error("compare_jobs", jobs=[job])


def test_the_log_is_searched_in_both_directions(agent: Agent, job: int) -> None:
    """Matching lines from the end, or after a line, page by page; filters by stream and level."""
    newest = agent.call("search_log", job=job, text="STEP 9", limit=5)
    assert [line["text"] for line in newest["lines"]] == [f"step {step}" for step in range(95, 100)]
    assert newest["left_out"] == ["earlier lines were not searched: repeat with before_seq=96"]
    earlier = agent.call("search_log", job=job, text="step 9", before_seq=96)
    assert [line["text"] for line in earlier["lines"]] == ["step 9", *(f"step {step}" for step in range(90, 95))]
    assert earlier["left_out"] == []
    first = agent.call("search_log", job=job, after_seq=0, limit=2)
    assert [line["seq"] for line in first["lines"]] == [1, 2]
    assert first["left_out"] == ["later lines were not searched: repeat with after_seq=2"]
    assert len(agent.call("search_log", job=job, stream="stderr")["lines"]) == 3
    assert [line["seq"] for line in agent.call("search_log", job=job, level="ERROR")["lines"]] == [103]
    assert agent.call("search_log", job=job, text="nowhere")["lines"] == []
    assert "give at most one" in agent.error("search_log", job=job, after_seq=1, before_seq=2)


def test_lines_around_a_moment(agent: Agent, job: int) -> None:
    """Lines around a `seq` or a time; after the end of the log, the last lines."""
    found = agent.call("log_around", job=job, seq=50, before=2, after=1)
    assert [line["text"] for line in found["lines"]] == ["step 47", "step 48", "step 49", "step 50"]
    at = to_datetime(NOW_NS + 49_500).isoformat()
    by_time = agent.call("log_around", job=job, moment=at, before=1, after=0)
    assert (by_time["at_seq"], [line["text"] for line in by_time["lines"]]) == (51, ["step 49", "step 50"])
    late = (to_datetime(NOW_NS) + timedelta(days=1)).isoformat()
    ended = agent.call("log_around", job=job, moment=late, before=1)
    assert [line["text"] for line in ended["lines"]] == ["ValueError: NaN in loss"]
    assert ended["left_out"] == [f"no line is at {late} or later: the last ones before are shown"]
    assert "moment='noon' is no time: write for example" in agent.error("log_around", job=job, moment="noon")
    assert "give one of them" in agent.error("log_around", job=job)


def test_checkpoints_are_listed(agent: Agent, job: int) -> None:
    """The newest ones with the state of their files; older ones are counted."""
    found = agent.call("checkpoints", job=job, limit=2)
    assert [(each["seq"], each["uri"], each["is_last"]) for each in found["checkpoints"]] == [
        (2, "s3://bucket/1.pt", False),
        (3, "s3://bucket/2.pt", True),
    ]
    assert found["left_out"] == ["1 older ones: repeat with before_seq=2"]
    assert [each["seq"] for each in agent.call("checkpoints", job=job, before_seq=2)["checkpoints"]] == [1]


def test_a_text_beyond_the_largest_answer_names_the_command(
    agent: Agent, sender: Sender, resources: Resources
) -> None:
    """A line that is too long for any answer is cut, with the command that shows all of it."""
    number = next(_jobs)
    sender.send(logs("z" * 1_200_000), job=number)
    drain(resources, "logs", number)
    left_out = agent.call("search_log", job=number)["left_out"]
    assert left_out == [
        "1 texts were cut: repeat with max_chars=1000000",
        "texts over 1,000,000 characters are whole in the output of `trainwire logs JOB`",
    ]


def test_an_answer_with_lines_is_bounded_in_total(agent: Agent, sender: Sender, resources: Resources) -> None:
    """Long lines end an answer before its limit of lines, and the next answer goes on after them."""
    number = next(_jobs)
    sender.send(logs(*["x" * 60_000] * 40), job=number)
    drain(resources, "logs", number)
    for side, begin in (("after_seq", 0), ("before_seq", 41)):
        seqs: list[int] = []
        first = begin
        for most in (17, 17, 6):
            found = agent.call("search_log", job=number, max_chars=60_000, limit=1000, **{side: first})
            assert len(found["lines"]) == most
            seqs += (line["seq"] for line in found["lines"])
            first = found["lines"][-1 if side == "after_seq" else 0]["seq"]
            assert bool(found["left_out"]) == (most == 17)
            assert all(f"repeat with {side}={first}" in each for each in found["left_out"])
        assert sorted(seqs) == list(range(1, 41))
    around = agent.call("log_around", job=number, seq=20, before=0, after=30, max_chars=60_000)
    assert around["left_out"] == ["later lines were not searched: search_log(after_seq=36)"]


def test_hostile_texts_are_cleaned_bounded_and_marked(agent: Agent, sender: Sender, resources: Resources) -> None:
    """Control sequences, hidden characters and huge lines of a training do not reach the agent as they are."""
    number = next(_jobs)
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")
    sender.send(Metrics(name="x\x1b[31m\u202ename", params={"a\x1b]0;t\x07": "b" * 5000}), job=number)
    sender.send(logs("\x1b[2Jred\x9d" + hidden, "y" * 60_000), job=number)
    drain(resources, "metrics", number)
    drain(resources, "logs", number)
    found = agent.call("search_log", job=number)
    assert found["job"]["name"] == "x<U+202E>name"
    assert found["lines"][0]["text"] == "red<U+E006F><U+E0062><U+E0065><U+E0079>"
    assert found["lines"][1]["text"] == "y" * 1000 + " [cut: 59,000 more characters]"
    assert found["left_out"] == ["1 texts were cut: repeat with max_chars=60000"]
    assert agent.call("search_log", job=number, max_chars=60_000)["lines"][1]["text"] == "y" * 60_000
    assert agent.call("get_job", job=number, parts=["params"])["params"] == {
        "a": "b" * 1000 + " [cut: 4,000 more characters]"
    }


def test_an_unknown_job_is_a_tool_error_with_a_remedy(agent: Agent, job: int) -> None:
    """Each tool that takes a job names the value, and the tool that lists jobs."""
    for tool in ("why_failed", "get_job", "search_log", "metric_names", "checkpoints"):
        assert "job 'nothing' is not in the database: list the jobs" in agent.error(tool, job="nothing")
    assert "job '99' is not in the database" in agent.error("get_job", job=99)
    assert "name is empty" in agent.error("get_job", job="")
    assert str(job) in agent.call("get_job", job="digits")["job"]["name"]


def test_wrong_arguments_are_tool_errors(agent: Agent, job: int) -> None:
    """A wrong type, a value out of bounds and an unknown argument name the argument; nothing is ignored."""
    assert (
        agent.error("search_log", job=job, limit=0) == "search_log: limit=0 should be greater than or equal to 1"
    )
    unknown = agent.error("search_log", job=job, atempt=2)
    assert "there is no argument atempt (atempt=2): the arguments are job, text, stream" in unknown
    assert "stream='out' should be 'stdout' or 'stderr'" in agent.error("search_log", job=job, stream="out")
    assert agent.error("search_log") == "search_log: the argument job is missing"
    assert "names" in agent.error("metric_history", job=job, names=[])
    assert "job" in agent.error("get_job", job=["a"])
    assert "no metric 'loss,acc'" in agent.error("metric_history", job=job, names=["loss,acc"])
    for tool, wrong in (("search_log", {"job": job, "text": "\0"}), ("get_job", {"job": "\0"})):
        error = agent.error(tool, **wrong)
        assert "NUL" in error
        assert "DATABASE_URL" not in error
        assert "upgrade" not in error
    assert agent.call("metric_history", job=job, names="loss")["metrics"][0]["name"] == "loss"
    assert agent.call("search_log", job=job, text="[1]")["lines"] == []


def test_many_calls_at_once_are_answered(agent: Agent, job: int) -> None:
    """The tools run in threads, each with a client of its own."""
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: agent.call("get_job", job=job)["job"]["id"], range(20)))
    assert found == [job] * 20


def test_a_wrong_token_is_a_tool_error(guarded: GatewayServer, resources: Resources, tmp_path: Path) -> None:
    """Without a token, with a wrong one and with a trainer's, the error has the remedy; a viewer's token works."""
    with resources.engine.begin() as connection:
        _, viewer = create_token(connection, "agent", "viewer")
        _, trainer = create_token(connection, "gpu", "trainer")
    url = guarded.url
    with Agent(tmp_path, TRAINWIRE_URL=url) as agent:
        assert "set TRAINWIRE_TOKEN" in agent.error("list_jobs")
    with Agent(tmp_path, TRAINWIRE_URL=url, TRAINWIRE_TOKEN="tw_wrong") as agent:
        error = agent.error("list_jobs")
        assert "wrong, expired or revoked" in error
        assert "tw_wrong" not in error
    with Agent(tmp_path, TRAINWIRE_URL=url, TRAINWIRE_TOKEN=trainer) as agent:
        assert "role" in agent.error("list_jobs")
    with Agent(tmp_path, TRAINWIRE_URL=url, TRAINWIRE_TOKEN=viewer) as agent:
        assert agent.call("list_jobs")["jobs"] == []


def test_a_store_that_is_off_is_a_tool_error(tmp_path: Path) -> None:
    """The server starts; each call names the address and the remedy."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Agent(tmp_path, TRAINWIRE_URL=url) as agent:
        error = agent.error("list_jobs")
    assert f"no gateway answers at {url}" in error
    assert "start `trainwire up` or correct TRAINWIRE_URL" in error
    with Agent(tmp_path, DATABASE_URL=f"postgresql://u:secret@127.0.0.1:{port}/d") as agent:
        error = agent.error("list_jobs")
    assert "check DATABASE_URL" in error
    assert "secret" not in error
    with Agent(tmp_path) as agent:
        assert "set TRAINWIRE_URL" in agent.error("list_jobs")


def test_all_tools_are_described_and_read_only(agent: Agent) -> None:
    """Each tool has a description, a description of each argument, and the hint that it changes nothing."""
    tools = agent.tools()
    assert [tool.name for tool in tools] == [tool.__name__ for tool in TOOLS]
    for tool in tools:
        assert tool.description
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert tool.input_schema["additionalProperties"] is False
        for name, argument in tool.input_schema["properties"].items():
            assert argument.get("description"), (tool.name, name)


def test_nothing_but_the_protocol_is_on_stdout(gateway: GatewayServer, tmp_path: Path) -> None:
    """Every line is a JSON-RPC message, also for broken input; the process ends with its input, with 0."""
    requests: list[dict[str, Any]] = [
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        },
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "get_job", "arguments": {"job": "5"}},
        },
    ]
    env = {"TRAINWIRE_URL": gateway.url, "XDG_STATE_HOME": str(tmp_path), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "trainwire", "mcp"]
    with subprocess.Popen(
        command, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        surrogate = json.dumps(requests[-1] | {"id": 3}).replace('"5"', '"\\ud800"')
        process.stdin.write(
            f"no JSON\n{surrogate}\n" + "".join(f"{json.dumps(request)}\n" for request in requests)
        )
        process.stdin.flush()
        answers: list[dict[str, Any]] = []
        while not any(answer.get("id") == 2 for answer in answers):
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(120) == 0
    assert {answer["jsonrpc"] for answer in answers} == {"2.0"}
    assert rest == ""
    assert answers[-1]["result"]["isError"] is True


def test_over_http_it_serves_this_machine_only(gateway: GatewayServer, tmp_path: Path) -> None:
    """With --port the same tools are at /mcp; a page of another host name cannot reach them by DNS rebinding."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    command = [sys.executable, "-m", "trainwire", "mcp", "--port", str(port)]
    env = os.environ | {"TRAINWIRE_URL": gateway.url}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        try:
            wait_until(lambda: is_listening(port) or process.poll() is not None, "the server", 120)
            with start_blocking_portal() as portal, portal.wrap_async_context_manager(Client(url)) as client:
                result = portal.call(client.call_tool, "list_jobs", {})
            assert json.loads(text_of(result))["jobs"] == []
            refused = gateway.http.post(url, json={}, headers={"Host": "evil.example"}, timeout=30)
            assert refused.status_code == 421
        finally:
            process.terminate()
        out, err = process.communicate(timeout=120)
    assert out == b""
    assert b"to all users of this machine" in err
    assert b"Traceback" not in err


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections at this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
