"""Stories about MLflow, files, alerts that are refused, stalled trainings, and metrics for Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tests.certify.stories import operators
from tests.certify.stories.story import Command, Step, arm, examine, has, number, signal, trainwire
from trainwire.schemas import prometheus_metrics
from trainwire.stores.mlflow.runs import ATTEMPT_TAG, JOB_TAG
from trainwire.workers.operations.exporter import Exporter
from trainwire.workers.resources import process_resources

if TYPE_CHECKING:
    from tests.certify.world import World

REFUSED: Final = 503
ACCEPTED: Final = 204


def replay_mlflow(world: World) -> Iterator[Step]:
    """An operator has the metrics delivered to MLflow again."""
    arm(world)
    yield trainwire("replay", str(world.job), "--sink", "mlflow", "--from", "1")


def make_own_run(world: World) -> Iterator[Step]:
    """The training logs to a run that it has created in MLflow itself, besides the one of the workers."""
    arm(world)
    yield has(world, 4, "metrics")
    yield lambda: number(world, "SELECT count(*) FROM training_attempts WHERE mirror_run_id IS NOT NULL") == 1
    api = world.mlflow.api
    tags = {JOB_TAG: str(world.job), ATTEMPT_TAG: "1"}
    run = api.post("runs/create", experiment_id="0", tags=[{"key": name, "value": tags[name]} for name in tags])
    world.own_run = run["run"]["info"]["run_id"]
    is_linked = f"SELECT count(*) FROM training_attempts WHERE mlflow_run_id = '{world.own_run}'"
    yield lambda: number(world, is_linked) == 1
    signal(world, "linked")


def verify_files(world: World) -> Iterator[Step]:
    """An operator runs the doctor, compares the files with Postgres, and has all lines written again."""
    arm(world)
    yield examine()
    yield trainwire("verify", str(world.job), "--sink", "jsonl")
    yield trainwire("replay", str(world.job), "--sink", "jsonl", "--from", "1")


def refuse_alerts(world: World) -> Iterator[Step]:
    """The destination refuses alerts for a time."""
    world.receiver.status = REFUSED
    yield from operators.alert(world)
    yield lambda: number(world, "SELECT count(*) FROM sink_states WHERE attempts > 0") > 0
    world.receiver.status = ACCEPTED


def resend_alert(world: World) -> Iterator[Step]:
    """An operator runs the doctor, and has an alert sent again."""
    yield examine()
    yield trainwire("alert", "resend", str(number(world, "SELECT min(id) FROM alerts")), words=2)


def stall(world: World) -> Iterator[Step]:
    """The training pauses for longer than it has announced, and goes on once its status is `stalled`."""
    yield has(world, 4)
    arm(world)
    yield (
        lambda: (
            number(world, f"SELECT count(*) FROM training_jobs WHERE id = {world.job} AND status = 'stalled'") == 1
        )
    )
    signal(world, "resumed")


def scrape(world: World) -> Iterator[Step]:
    """Prometheus scrapes until both stores answer; the values of a store that does not answer must be absent."""
    arm(world)

    def run() -> None:
        found = {metric.name: metric.samples for metric in Exporter(process_resources()).collect()}
        up = {sample.labels["store"]: sample.value for sample in found[prometheus_metrics.STORE_UP.name]}
        jobs = {sample.labels["status"]: sample.value for sample in found[prometheus_metrics.JOBS.name]}
        assert jobs == ({"completed": 1.0} if up["postgres"] else {}), jobs
        assert bool(found[prometheus_metrics.REDIS_USED_BYTES.name]) == bool(up["redis"])
        sys.exit(int(not all(up.values())))

    yield Command("scrape", run, role="exporter")
