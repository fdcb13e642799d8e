"""Commands that read jobs print the same over HTTP, with TRAINWIRE_URL only, as straight from Postgres."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import update

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, completion, drain, logs, one
from tests.gateway_server import GatewayServer
from tests.integration.cli.conftest import Outcome, Trainwire
from trainwire.cli import gateway_reads
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.keys import KINDS
from trainwire.schemas.tables import stop_requests, training_jobs
from trainwire.schemas.wire.messages import Logs, Metrics, Point, Progress
from trainwire.workers.resources import Resources

NOT_KNOWN = (
    "trainwire: whether a drain has stopped is not known over HTTP: run `trainwire doctor` beside the workers\n"
)
PARAMS = {"lr": 0.01, "net": {"depth": 3}}
Both = Callable[..., tuple[Outcome, Outcome]]


@pytest.fixture
def trained(resources: Resources, sender: Sender) -> Resources:
    """Three jobs: one that failed with all kinds of rows, one that runs, one that completed and is archived."""
    started = Logs(log_type="stdout", lines=["begin"], ts=[NOW_NS - SECOND_NS], started_at=NOW_NS - SECOND_NS)
    sender.send(started, job=1)
    sender.send(logs("loss 1", "Loss 2 \x1b[31mred\x1b[0m", "two\nlines", "x" * 70_000), job=1)
    sender.send(Logs(log_type="stderr", lines=["slow disk"], ts=[NOW_NS], levels=["WARNING"]), job=1)
    for step in range(1, 8):
        values = {"loss": math.nan if step == 3 else 1 / step, "grad": -math.inf if step == 4 else step * 1e-7}
        point = Point(ts=NOW_NS + step, epoch=step // 4, step=step, values=values)
        progress = Progress(status="running", current_epoch=step // 4, total_epochs=2, progress_percent=50.5)
        about = Metrics(points=[point], progress=progress, name="digits", params=PARAMS, tags={"team": "text"})
        sender.send(about, job=1)
    sender.send(checkpoint("s3://bucket/1.pt", size_bytes=5000, sha256="ab" * 32, is_best=True), job=1)
    sender.send(checkpoint("s3://bucket/2.pt", kind="epoch", is_best=True, step=4), job=1)
    sender.send(checkpoint("/disk/3.pt", kind="last", upload_error="no bucket"), job=1)
    end = completion(
        "failed",
        exit_code=1,
        error_message="CUDA out of memory",
        final_metrics={"loss": math.inf, "accuracy": 0.5},
        best_metrics={"accuracy": 0.75},
        best_epoch=1,
    )
    sender.send(end, job=1)
    sender.send(logs("working"), job=2)
    sender.send(completion(), job=3)
    for kind in KINDS:
        for job in (1, 2, 3):
            drain(resources, kind, job)
    with resources.engine.begin() as connection:
        edits = {"note": "in the paper", "archived_at": one(resources.engine, training_jobs, id=3)["created_at"]}
        connection.execute(update(training_jobs).where(training_jobs.c.id == 3).values(edits))
    return resources


@pytest.fixture
def both(trained: Resources, trainwire: Trainwire, alone: pytest.MonkeyPatch, guarded: GatewayServer) -> Both:
    """Give a function that runs a command straight on Postgres, and then over HTTP with the token of a viewer."""
    with trained.engine.begin() as connection:
        _, token = create_token(connection, "reader", "viewer")
    for name in ("GATEWAY_URL", "TRAINWIRE_URL", "TRAINWIRE_TOKEN"):
        alone.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[Outcome, Outcome]:
        with alone.context() as direct:
            direct.setenv("DATABASE_URL", trained.settings.database_url.get_secret_value())
            stored = trainwire(*arguments)
        with alone.context() as remote:
            remote.setenv("TRAINWIRE_URL", guarded.url)
            remote.setenv("TRAINWIRE_TOKEN", token)
            return stored, trainwire(*arguments)

    return run


@pytest.mark.parametrize(
    "command",
    [
        ("jobs",),
        ("jobs", "--json"),
        ("jobs", "--archived", "--limit", "2"),
        ("jobs", "--status", "failed", "--name", "dig", "--search", "text"),
        ("jobs", "--name", "nobody"),
        (
            "jobs",
            "--filter",
            "params.lr < 1",
            "--sort=-started",
            "--columns",
            "started,params.net,duration,tags.team",
        ),
        ("jobs", "--columns", "started,ended,metrics.loss,metrics.grad.min,note", "--json", "--archived"),
        ("metrics", "1"),
        ("metrics", "digits", "--json"),
        ("metrics", "1", "--json", "--limit", "3"),
        ("metrics", "1", "--names", "loss,nothing"),
        ("metrics", "1", "--names", "grad", "--json", "--limit", "2"),
        ("metrics", "1", "--csv"),
        ("metrics", "2"),
        ("metrics", "3"),
        ("logs", "1"),
        ("logs", "last"),
        ("logs", "1", "--limit", "2"),
        ("logs", "1", "--limit", "0"),
        ("logs", "1", "--grep", "loss"),
        ("logs", "1", "--grep", "Loss", "--log-type", "stdout", "--attempt", "1"),
        ("logs", "1", "--attempt", "-4"),
        ("logs", "1", "--log-type", "stderr"),
        ("checkpoints", "1"),
        ("checkpoints", "1", "--json"),
        ("checkpoints", "1", "--attempt", "2"),
        ("checkpoints", "2"),
    ],
    ids=" ".join,
)
def test_a_command_prints_the_same_both_ways(both: Both, command: tuple[str, ...]) -> None:
    """Output, warnings and exit code of a command do not depend on the way to the data."""
    stored, remote = both(*command)
    assert remote == stored
    assert stored.code == 0


@pytest.mark.parametrize("job", ["1", "2", "3"])
def test_the_status_is_the_same_both_ways(both: Both, job: str) -> None:
    """Over HTTP one line more says that stopped drains are not known; `halted` is null in the JSON document."""
    stored, remote = both("status", job)
    assert (remote.out, remote.err) == (stored.out, NOT_KNOWN + stored.err)
    stored, remote = both("status", job, "--json")
    assert json.loads(stored.out)["halted"] == {}
    assert json.loads(remote.out) == json.loads(stored.out) | {"halted": None}


def test_several_pages_are_put_together(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs, lines and points that need many requests are printed once, in order."""
    for name in ("PAGE_JOBS", "PAGE_LINES", "PAGE_POINTS"):
        monkeypatch.setattr(gateway_reads, name, 2)
    for command in (("jobs", "--archived"), ("logs", "1", "--grep", "l"), ("metrics", "1", "--limit", "6")):
        stored, remote = both(*command)
        assert remote == stored


def test_the_log_is_followed_over_http(
    trained: Resources, sender: Sender, trainwire: Trainwire, alone: pytest.MonkeyPatch, gateway: GatewayServer
) -> None:
    """`logs -f` prints the lines that arrive later, and ends with the job."""
    alone.delenv("TRAINWIRE_TOKEN", raising=False)
    alone.setenv("TRAINWIRE_URL", gateway.url)

    def finish() -> None:
        sender.send(logs("the last"), job=2)
        sender.send(completion(produced={"logs": 2, "completions": 1}), job=2)
        drain(trained, "logs", 2)
        drain(trained, "completions", 2)

    timer = threading.Timer(0.5, finish)
    timer.start()
    shown = trainwire("logs", "2", "-f")
    timer.join()
    assert [line.split(" ", 2)[2] for line in shown.out.splitlines()] == ["working", "the last"]
    assert (shown.code, shown.err) == (0, "")


def test_lines_in_loki_need_the_servers(both: Both) -> None:
    """The gateway does not filter the lines in Loki, and the error names the settings that are needed."""
    assert "set DATABASE_URL and LOKI_URL" in both("logs", "1", "--from", "loki")[1].err


def test_a_stop_goes_through_the_gateway(
    trained: Resources, trainwire: Trainwire, alone: pytest.MonkeyPatch, guarded: GatewayServer
) -> None:
    """The request is stored with the token's name; a viewer may not ask, and a job that has ended is an error."""
    tokens = {}
    with trained.engine.begin() as connection:
        for role in ("viewer", "admin"):
            tokens[role] = create_token(connection, f"{role} of night", role)[1]
    alone.setenv("TRAINWIRE_URL", guarded.url)
    alone.setenv("TRAINWIRE_TOKEN", tokens["viewer"])
    assert "use a token with the role admin" in trainwire("stop", "2").err
    alone.setenv("TRAINWIRE_TOKEN", tokens["admin"])
    done = trainwire("stop", "2", "--reason", "NaN", "--by", "anna")
    assert done.out.startswith("job 2, attempt 1: admin of night asked it to stop ")
    assert done.out.endswith(": NaN\n")
    assert one(trained.engine, stop_requests, job_id=2)["requested_by"] == "admin of night"
    assert json.loads(trainwire("stop", "2", "--json").out)["reason"] == "NaN"
    assert "job 1 has ended (failed)" in trainwire("stop", "1").err
