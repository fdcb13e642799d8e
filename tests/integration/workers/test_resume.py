"""Attempts that resume from a step, and forks: what is stored of them, and read back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Table, select

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, logs, one
from tests.gateway_server import GatewayServer
from tests.processes import wait_until
from trainwire import Client, Run, TrainerSettings
from trainwire.ingest.settings.setting_groups import SpoolSettings
from trainwire.schemas.keys import KINDS
from trainwire.schemas.tables import (
    dead_letters,
    training_attempts,
    training_jobs,
    training_logs,
    training_metrics,
)
from trainwire.schemas.wire.messages import Metrics, Progress
from trainwire.stores.postgres.jobs.attempts import find_attempts, renaming
from trainwire.workers.resources import Resources
from trainwire.workers.rollups.follower import RollupFollower

MINUTE: Final = 60 * SECOND_NS


def begin(began: int, resume_step: int | None = None, rank: int | None = None) -> Metrics:
    """Return the first message of a source that does not know its attempt."""
    progress = Progress(status="running", resume_step=resume_step)
    return Metrics(
        ts=began, progress=progress, heartbeat_s=10, rank=rank, started_at=began, resume_step=resume_step
    )


def drain_all(resources: Resources, job: int = 1) -> None:
    """Drain the streams of a job; log lines first, as may happen."""
    for kind in KINDS:
        drain(resources, kind, job=job)


def stored(resources: Resources, table: Table) -> list[Any]:
    """Return all rows of a table."""
    with resources.engine.connect() as connection:
        return list(connection.execute(select(table)).mappings())


def attempts(resources: Resources) -> list[tuple[int, str, int | None]]:
    """Return number, status and step of all stored attempts."""
    found = stored(resources, training_attempts)
    return sorted((row["attempt"], row["status"], row["resume_step"]) for row in found)


def test_a_killed_attempt_is_followed_by_the_resumed_one(sender: Sender, resources: Resources) -> None:
    """It is a new attempt at once, whichever kind of message is stored first; other ranks join it."""
    sender.send(begin(NOW_NS), source="0-killed", attempt=0)
    drain_all(resources)
    late = NOW_NS + 2 * MINUTE
    resumed = logs("resumed", ts=late, started_at=late)
    resumed.resume_step = 4000
    sender.send(resumed, source="0-new", attempt=0)
    drain_all(resources)
    sender.send(begin(late, 4000), source="0-new", attempt=0)
    sender.send(begin(late + 30 * SECOND_NS, 4000, rank=1), source="1-new", attempt=0)
    drain_all(resources)
    assert attempts(resources) == [(1, "lost", None), (2, "running", 4000)]
    assert [row["attempt"] for row in stored(resources, training_logs)] == [2]
    job = one(resources.engine, training_jobs)
    assert (job["attempt"], job["resume_step"]) == (2, 4000)


def test_each_resumption_is_an_attempt(sender: Sender, resources: Resources) -> None:
    """After an end, and from the same step again, there is another attempt; without a step it is not resumed."""
    for number in range(3):
        began = NOW_NS + number * MINUTE
        step = 4000 if number < 2 else None
        sender.send(begin(began, step), source=f"0-{number}", attempt=0)
        drain_all(resources)
        sender.send(completion("failed", ts=began + SECOND_NS, exit_code=1), source=f"0-{number}", attempt=0)
        drain_all(resources)
    assert attempts(resources) == [(1, "failed", 4000), (2, "failed", 4000), (3, "failed", None)]
    assert one(resources.engine, training_jobs)["resume_step"] is None


def test_rolled_back_points_stay_readable(
    resources: Resources, gateway: GatewayServer, settings_of_trainer: TrainerSettings
) -> None:
    """Downloads and charts have all points of both attempts, before and after they are in the rollups."""
    for resume, steps in ((None, range(6)), (3, range(4, 8))):
        run = Run(7, resume_from_step=resume, settings=settings_of_trainer)
        for step in steps:
            run.metric(step=step, loss=float(step))
        run.finish("failed" if resume is None else "completed", timeout_s=60)
        drain_all(resources, job=7)
    for is_rolled_up in (False, True):
        if is_rolled_up:
            RollupFollower(resources.engine).run(120)
        series = {each["attempt"]: each for each in gateway.get("/jobs/7/metrics?names=loss")["series"]}
        assert [point[0] for point in series[1]["points"]] == [0, 1, 2, 3, 4, 5]
        assert [point[0] for point in series[2]["points"]] == [4, 5, 6, 7]
    with Client(gateway.url) as client:
        job = client.job(7)
        loss = job.metrics("loss")["loss"]
        assert (list(loss.step), list(loss.attempt)) == ([0, 1, 2, 3, 4, 5, 4, 5, 6, 7], [1] * 6 + [2] * 4)
        assert job.info.resume_step == 3
    assert [each["resume_step"] for each in gateway.get("/jobs/7")["attempts"]] == [None, 3]
    assert len(stored(resources, training_metrics)) == 10


def test_a_fork_is_shown_with_its_parent(
    resources: Resources, gateway: GatewayServer, settings_of_trainer: TrainerSettings
) -> None:
    """The fork has its parent and the step, and the parent its forks, over HTTP, in filters and in Python."""
    for number, arguments in ((7, {}), (8, {"parent": 7, "fork_step": 4000})):
        Run(number, f"job-{number}", settings=settings_of_trainer, **arguments).finish(timeout_s=60)  # type: ignore[arg-type]
        drain_all(resources, job=number)
    fork = gateway.get("/jobs/8")
    assert (fork["parent_id"], fork["fork_step"], fork["forks"]) == (7, 4000, [])
    assert gateway.get("/jobs/7")["forks"] == [8]
    with Client(gateway.url) as client:
        assert [(job.id, job.info.parent_id) for job in client.jobs("parent = 7")] == [(8, 7)]


def test_the_launcher_resumes(resources: Resources, tmp_path: Path) -> None:
    """`--resume-from-step` begins one attempt, of the launcher and of the script in it, after a killed one."""
    url = resources.settings.redis_url.get_secret_value()
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    environment = clean | {"REDIS_URL": url, "TRAINWIRE_SETTLE_S": "0.1"}
    script = "from trainwire import Run\nwith Run.from_env() as run: run.metric(step=5, loss=1.0)"
    Sender(resources.redis).send(begin(NOW_NS), source="0-killed", attempt=0, job=7)
    drain_all(resources, job=7)
    command = [sys.executable, "-m", "trainwire.ingest", "--job-id", "7", "--resume-from-step", "4"]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", script], env=environment, cwd=tmp_path, check=False, timeout=180
    )
    assert done.returncode == 0
    drain_all(resources, job=7)
    assert attempts(resources) == [(1, "lost", None), (2, "completed", 4)]
    wrong = subprocess.run(
        [*command, "--parent", "3", "--", "true"], env=environment, capture_output=True, check=False, timeout=180
    )
    assert wrong.returncode == 2
    assert b"give one of the two" in wrong.stderr


@pytest.fixture
def settings_of_trainer(resources: Resources) -> TrainerSettings:
    """Settings of a trainer on the test Redis."""
    return TrainerSettings(redis_url=resources.settings.redis_url.get_secret_value())


def test_hostile_steps_are_dead_lettered(sender: Sender, resources: Resources) -> None:
    """A step that Postgres cannot store ends no drain."""
    sender.send(begin(NOW_NS), attempt=0)
    for number, fields in enumerate(({"parent_id": 2**63}, {"fork_step": -(2**63)}, {"resume_step": 2**63})):
        sender.send(Metrics(ts=NOW_NS, **fields), attempt=0, source=f"hostile-{number}")  # type: ignore[arg-type]
    drain_all(resources)
    assert {row["reason"] for row in stored(resources, dead_letters)} == {"out-of-range"}
    assert len(stored(resources, dead_letters)) == 3
    assert one(resources.engine, training_jobs)["parent_id"] is None


def test_a_resumed_job_that_is_unknown_is_a_warning(
    resources: Resources, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The trainer goes on and logs it once with value and remedy; the status of the job has it too."""
    settings = TrainerSettings(
        redis_url=resources.settings.redis_url.get_secret_value(), spool=SpoolSettings(tmp_path / "spool")
    )
    run = Run(9, resume_from_step=5, settings=settings)

    def is_warned() -> bool:
        run.log("goes on")
        drain_all(resources, job=9)
        return "job 9 resumes from step 5, and no earlier attempt of it is stored: check the number" in caplog.text

    wait_until(is_warned, "the trainer warns")
    run.finish(timeout_s=0)
    drain_all(resources, job=9)
    assert caplog.text.count("resumes from step 5") == 1
    with resources.engine.connect() as connection:
        assert "resumes from step 5, and no earlier" in (renaming(find_attempts(connection, 9)) or "")
    caplog.clear()
    with Run(9, resume_from_step=6, settings=settings) as again:
        again.log("a known job")
        outbox = again._session.outbox

        def is_acked() -> bool:
            drain_all(resources, job=9)
            return outbox.is_all_acked

        wait_until(is_acked, "it is acknowledged")
    assert "no earlier attempt" not in caplog.text
