"""Lines of text about a deletion."""

from __future__ import annotations

from datetime import UTC, datetime

from trainwire.cli.commands.jobs.deletion_lines import part_line, plan_lines
from trainwire.stores.postgres.deletion import Choice, DeletionPart
from trainwire.stores.postgres.deletion_plan import DeletionPlan


def test_a_finished_part_has_one_count() -> None:
    """Rows that were deleted in the part of another store do not look as if they were left."""
    done = DeletionPart(state="done", planned=615, deleted=609)
    assert part_line("postgres", done) == "rows in Postgres: done, 609 deleted"
    left = DeletionPart(state="left", planned=3, deleted=1)
    assert part_line("loki", left) == "lines in Loki: could not be deleted, 1 of 3 deleted"


def test_runs_in_mlflow_are_named_as_such() -> None:
    """The ids of MLflow's runs stand in a line of their own, whatever sinks there are."""
    plan = DeletionPlan(
        job_id=1, name=None, status="completed", attempt=1, created_at=datetime(2026, 1, 1, tzinfo=UTC),
        rows={}, copies={"mlflow": 1, "jsonl": 300}, mlflow_runs=["3c3d"], own_runs=["f00d"], files=[],
        file_count=0, file_bytes=0, tokens=0,
    )  # fmt: skip
    assert plan_lines(plan, Choice())[2:] == [
        "  MLflow: 1 runs",
        "  JSON files: 300 lines",
        "  runs in MLflow: 3c3d",
        "  runs in MLflow that its trainer made, kept: f00d",
    ]
