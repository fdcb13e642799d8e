"""When `logs -f` stops waiting for a finished job."""

from __future__ import annotations

from typing import Any

from trainwire.cli.commands.jobs.logs import Quiet
from trainwire.stores.postgres.jobs.job_lookup import Job

NOTHING: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)


def _job(status: str, rows: int, attempt: int = 1) -> Job:
    numbers = {"last_log_seq": rows, "last_metric_seq": 0, "last_checkpoint_seq": 0, "attempt": attempt}
    return Job(**(NOTHING | numbers | {"id": 1, "status": status}))


def test_only_a_finished_job_can_be_quiet() -> None:
    """The quiet time begins when the job is seen finished, and restarts with every row, attempt or status."""
    now_s = 0.0
    quiet = Quiet(lambda: now_s)
    steps = [
        (None, 0.0),
        (_job("running", 3), 0.0),
        (_job("running", 3), 0.0),
        (_job("completed", 3), 0.0),
        (_job("completed", 3), 5.0),
        (_job("completed", 3), 10.0),
        (_job("completed", 4), 0.0),
        (_job("completed", 4), 5.0),
        (_job("failed", 4), 0.0),
        (_job("failed", 4), 5.0),
        (_job("failed", 4, attempt=2), 0.0),
        (_job("running", 4, attempt=2), 0.0),
        (_job("failed", 4, attempt=2), 0.0),
        (_job("failed", 4, attempt=2), 5.0),
    ]
    for job, expected_s in steps:
        now_s += 5.0
        assert quiet.lasts_s(job) == expected_s
