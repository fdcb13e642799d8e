"""The table of the kinds of rows fits the tables and the events that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire.schemas.events import TrainingLog, TrainingStatus
from trainwire.schemas.tables import training_jobs
from trainwire.schemas.tables.kinds import ROW_KINDS, RowKind, without_rows

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_kind_has_its_columns_and_its_field(kind: RowKind) -> None:
    """A drain writes every column that Postgres does not fill by itself; the event has a field for the rows."""
    storage = ROW_KINDS[kind]
    needed = {column.name for column in storage.table.c if not column.nullable and column.server_default is None}
    assert needed <= set(storage.columns) <= set(storage.table.c.keys())
    assert {storage.last_seq, storage.removed_seq or storage.last_seq} <= set(training_jobs.c.keys())
    assert storage.items in storage.event.__struct_fields__


def test_an_event_goes_on_without_its_rows() -> None:
    """A large event is published with its range alone; events without rows do not change."""
    event = TrainingLog(job_id=1, attempt=1, kind="logs", first_seq=3, last_seq=4, lines=[])
    assert without_rows(event) == TrainingLog(job_id=1, attempt=1, kind="logs", first_seq=3, last_seq=4)
    status = TrainingStatus(job_id=1, attempt=1, status="lost")
    assert without_rows(status) == status


def test_metric_columns_are_listed_once() -> None:
    """A new metric column is a line in schemas/lifted_metrics.py and a migration; HTTP callbacks may name it."""
    folders = ("schemas", "stores", "workers", "client", "gateway", "cli", "stack", "trainwire")
    trainings = {"integrations", "demo"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if not trainings & {*path.parts}]
    listing = {path.relative_to(ROOT) for path in files if "learning_rate" in path.read_text()}
    migration = Path("schemas/migrations/versions/0001_first_tables.py")
    assert listing == {Path("schemas/lifted_metrics.py"), migration, Path("gateway/callbacks/bodies.py")}
