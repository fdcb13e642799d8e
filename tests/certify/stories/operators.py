"""Stories of operators: backups and restores, other shards, commands, rules, old rows, and pages that are read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import requests
from sqlalchemy import text

from tests.certify import restores
from tests.certify.stories.story import (
    Command,
    NewWorker,
    Step,
    arm,
    examine,
    has,
    has_ended,
    number,
    signal,
    trainwire,
)
from tests.certify.trainings import LINES

if TYPE_CHECKING:
    from tests.certify.world import World

PAGE_S: Final = 10.0
ANSWER_S: Final = 60.0
"""Longest time in seconds until a gateway that was killed answers again, on a busy machine."""


def restore_postgres(world: World) -> Iterator[Step]:
    """Postgres is restored from a dump that lacks a third of the rows, then `reconcile` is called."""
    yield has(world, 2)
    dump = restores.back_up_postgres(world)
    signal(world, "backed-up")
    yield has(world, 4)
    yield has(world, 4, "metrics")
    arm(world)
    restores.restore_postgres(world, dump)
    yield trainwire("reconcile")
    signal(world, "restored")


def restore_redis(world: World) -> Iterator[Step]:
    """Redis is restored from an older append-only file."""
    yield has(world, 2)
    copy = restores.back_up_redis(world)
    signal(world, "backed-up")
    yield has(world, 4)
    arm(world)
    restores.restore_redis(world, copy)
    signal(world, "restored")


def restore_both(world: World) -> Iterator[Step]:
    """Postgres and Redis are restored, each from a backup of another time, and nobody calls `reconcile`."""
    yield has(world, 1)
    dump = restores.back_up_postgres(world)
    yield has(world, 2, "metrics")
    copy = restores.back_up_redis(world)
    signal(world, "backed-up")
    yield has(world, 4)
    arm(world)
    restores.restore_redis(world, copy)
    restores.restore_postgres(world, dump)
    signal(world, "restored")


def change_shards(world: World) -> Iterator[Step]:
    """Workers start with half as many shards, so that the stream of the running training is a stray one."""
    yield has(world, 2)
    arm(world)
    yield NewWorker({"INGEST_SHARDS": "2"})
    yield lambda: world.redis.get("ingest:shards") == b"2"
    signal(world, "changed")
    sources = f"SELECT count(DISTINCT source) FROM source_positions WHERE job_id = {world.job}"
    yield lambda: number(world, sources) == 2
    signal(world, "joined")  # a rank that began after the end of rank 0 would be a new attempt


def stop(world: World) -> Iterator[Step]:
    """An operator asks the training to stop."""
    yield has(world, len(LINES))
    arm(world)
    yield trainwire(
        "stop", str(world.job), "--reason", "loss is NaN", "--by", "certification", is_done=has_ended(world)
    )


def alert(world: World) -> Iterator[Step]:
    """The alert rules take effect, then the training begins."""
    yield lambda: number(world, "SELECT count(*) FROM delivery_cursors WHERE sink = 'alerts'") > 0
    arm(world)
    signal(world, "rules")


CSV: Final = "step,loss,f1\n" + "".join(f"{number},{1 / (number + 1)},{number}\n" for number in range(len(LINES)))


def import_csv(world: World) -> Iterator[Step]:
    """An operator imports a run, repeats the import if it failed, and reads the status of the run."""
    from trainwire.cli.transfer.readers.csv_file import csv_run  # noqa: PLC0415 - few runs need it

    file = world.folder / f"imported-{world.job}.csv"
    file.write_text(CSV)
    world.job = csv_run(file, None, "").job_id
    yield trainwire("import", "csv", str(file), "--quiet")
    yield trainwire("status", str(world.job))


def delete_by_command(world: World) -> Iterator[Step]:
    """An operator deletes the job, twice, with the command line, which does the work of the workers itself.

    Then the number of the job may be used again.
    """
    arm(world)
    job = str(world.job)
    for _ in range(2):
        yield trainwire("delete", job, "--yes", "--force", "--with-files")
    tombstones = "SELECT count(*) FROM deleted_jobs"
    yield trainwire("delete", job, "--forget", is_done=lambda: number(world, tombstones) == 0)


def age_rows(world: World) -> Iterator[Step]:
    """The rows of the job become so old that retention deletes them; an operator reads the copies in Loki."""
    with world.engine.begin() as connection:
        for table in ("training_logs", "training_metrics"):
            connection.execute(text(f"UPDATE {table} SET created_at = now() - interval '3 days'"))
        aged = "created_at = now() - interval '3 days', completed_at = now() - interval '2 days'"
        connection.execute(text(f"UPDATE training_jobs SET {aged}"))
    arm(world)
    yield lambda: number(world, "SELECT CAST(NOT EXISTS (SELECT FROM training_logs) AS int)") == 1
    yield trainwire("logs", str(world.job), "--from", "loki")


def age_files(world: World) -> Iterator[Step]:
    """The job ended so long ago that orphans of its uploads are searched for.

    An operator runs the doctor, and downloads a checkpoint, which the training may not have uploaded.
    """
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET completed_at = now() - interval '2 days'"))
    arm(world)
    yield examine()
    download = ("--download", "last", "--to", str(world.folder / "downloaded"), "--force")
    yield trainwire("checkpoints", str(world.job), *download, is_done=lambda: True)


def run_commands(world: World) -> Iterator[Step]:
    """An operator runs all commands that read the job, and has its lines delivered again.

    The commands do not depend on each other: if one of them has the failing call, the others are left out.
    """
    arm(world)
    job = str(world.job)
    for arguments in (
        ["status", job],
        ["jobs"],
        ["logs", job, "--follow"],
        ["metrics", job],
        ["checkpoints", job],
        ["deliveries"],
        ["dead-letters", "list"],
        ["alerts"],
        ["verify", job, "--sink", "loki"],
        ["export", job, "--output", str(world.folder / "exported")],
        ["replay", job, "--sink", "loki", "--from", "1"],
        ["tag", job, "seen=yes"],
        ["note", job, "certified"],
    ):
        command = trainwire(*arguments)
        if not (world.failing_role or "").startswith("operator") or command.role == world.failing_role:
            yield command


PAGES: Final = (
    "/jobs",
    "/jobs?filter=metrics.loss<1&sort=-metrics.loss&columns=params.lr,metrics.f1&details=true",
    "/jobs/groups?by=status",
    "/jobs/fields",
    "/jobs/resolve?reference=certified",
    "/jobs/compare?ids={job}",
    "/jobs/{job}",
    "/jobs/{job}/provenance",
    "/jobs/{job}/completeness",
    "/jobs/{job}/deliveries",
    "/jobs/{job}/logs",
    "/jobs/{job}/logs?at=2000-01-01T00:00:00Z",
    "/jobs/{job}/logs/loki",
    "/jobs/{job}/metrics",
    "/jobs/{job}/metrics/names",
    "/jobs/{job}/metrics/rows",
    "/jobs/{job}/metrics/download",
    "/jobs/{job}/checkpoints",
    "/alerts",
)
"""The addresses of the gateway for reading; those that send commands have stories of their own."""


def read_pages(world: World) -> Iterator[Step]:
    """A reader requests all documents of the gateway, until it returns each; errors must be 502 or 503."""
    arm(world)

    def run() -> None:
        urls = [f"http://127.0.0.1:{world.gateway_port}{page.format(job=world.job)}" for page in PAGES]
        with requests.Session() as session:
            answers = [_answer(session, url) for url in urls]
            for url, answer in zip(urls, answers, strict=True):
                again = _answer(session, url)
                assert answer.content == again.content, f"{url}: {answer.text}, then {again.text}"

    yield Command("read", run, role="")


def _answer(session: requests.Session, url: str) -> requests.Response:
    """Request a document until the status is 200; raise `AssertionError` for a status other than 502 and 503."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        try:
            answer = session.get(url, timeout=PAGE_S)
        except requests.RequestException:  # the gateway was killed, or a stream broke off
            time.sleep(0.2)
            continue
        if answer.status_code == requests.codes.ok:
            return answer
        assert answer.status_code in (502, 503), f"{url}: {answer.status_code} {answer.text}"
    raise AssertionError(f"{url}: no answer within {ANSWER_S:g} s")
