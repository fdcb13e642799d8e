"""Exports: every row of a job in a file that other tools, and an import, read."""

from __future__ import annotations

import csv
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs, rows
from tests.integration.cli.conftest import Trainwire
from trainwire.cli.transfer.parquet_schema import schema
from trainwire.schemas.keys import KINDS
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.workers.resources import Resources

COLUMNS = ("epoch", "step", "loss", "accuracy", "extra_metrics", "logged_at")


@pytest.fixture
def job(resources: Resources, sender: Sender) -> int:
    """A finished job with 5,000 rows of metrics, odd values, lines and a checkpoint."""
    points = [
        Point(ts=NOW_NS + step * 1000, step=step, epoch=step // 100, values={"loss": step / 3})
        for step in range(5000)
    ]
    points[1].values = {"loss": math.nan, "accuracy": 0.0, 'odd, "name"\n': math.inf}
    about: dict[str, Any] = {"name": "digits", "params": {"lr": 0.1, "deep": True, "size": 3, "opt": "adam"}}
    sender.send(Metrics(points=points, started_at=NOW_NS, tags={"team": "vision"}, **about))
    sender.send(logs("one", "two\u2028"))
    sender.send(checkpoint())
    sender.send(completion())
    for kind in KINDS:
        drain(resources, kind)
    return 1


@pytest.mark.usefixtures("workers")
def test_csv_has_every_value_and_comes_back(
    connected: Trainwire, resources: Resources, job: int, tmp_path: Path
) -> None:
    """An exported CSV file has one line a value; imported as another job it gives the same rows."""
    done = connected("export", str(job), "--output", str(tmp_path))
    assert (done.code, done.out) == (0, "")
    assert "5,002 points" in done.err
    with (tmp_path / "1.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5002
    assert [line["name"] for line in lines[1:4]] == ["loss", "accuracy", 'odd, "name"\n']
    before = list(map(str, rows(resources.engine, training_metrics, *COLUMNS)))
    receipt = json.loads(connected("import", "csv", str(tmp_path / "1.csv"), "--json").out)
    assert receipt["points"] == {"source": 5002, "stored": 5002, "skipped": {}, "missing": 0}
    assert list(map(str, rows(resources.engine, training_metrics, *COLUMNS)))[5000:] == before


def test_json_lines_have_all_of_a_job(connected: Trainwire, job: int) -> None:
    """The job, its metrics, lines and checkpoints are one object a line, on stdout."""
    done = connected("export", "digits", "--format", "jsonl")
    documents = [json.loads(line) for line in done.out.split("\n")[:-1]]
    assert [documents[0][name] for name in ("type", "id", "name", "status")] == ["job", job, "digits", "completed"]
    points = [each for each in documents if each["type"] == "metrics"]
    assert [point["step"] for point in points] == list(range(5000))
    assert points[1]["values"] == {"loss": "NaN", "accuracy": 0.0, 'odd, "name"\n': "Infinity"}
    assert [each["content"] for each in documents if each["type"] == "log"] == ["one", "two\u2028"]
    assert [each["uri"] for each in documents if each["type"] == "checkpoint"] == ["s3://bucket/best.pt"]


def test_parquet_has_the_schema_of_neptune_exporter(connected: Trainwire, job: int, tmp_path: Path) -> None:
    """A row is one value of one attribute, in the fourteen columns that migration tools read."""
    assert connected("export", str(job), "--format", "parquet", "-o", str(tmp_path)).code == 0
    table = pyarrow.parquet.read_table(tmp_path / "trainwire" / "1_part_0.parquet")
    assert table.column_names[:6] == [
        "project_id", "run_id", "attribute_path", "attribute_type", "step", "timestamp",
    ]  # fmt: skip
    assert len(table.column_names) == 14
    found = table.to_pylist()
    single = {row["attribute_path"]: row for row in found if not row["attribute_type"].endswith("_series")}
    assert single["sys/name"]["string_value"] == "digits"
    assert single["parameters/lr"]["float_value"] == 0.1
    assert single["parameters/deep"]["bool_value"] is True
    assert single["parameters/size"]["int_value"] == 3
    assert single["tags/team"]["string_value"] == "vision"
    losses = [row for row in found if row["attribute_path"] == "loss"]
    assert [row["step"] for row in losses] == list(map(Decimal, range(5000)))
    assert losses[3]["float_value"] == 1.0
    assert losses[3]["timestamp"].timestamp() == NOW_NS // 10**6 / 1000
    assert [row["string_value"] for row in found if row["attribute_path"] == "logs/stdout"] == ["one", "two\u2028"]


@pytest.mark.usefixtures("workers")
def test_parquet_comes_back(connected: Trainwire, resources: Resources, job: int, tmp_path: Path) -> None:
    """Imported as another job it has the same name, parameters, tags, end, values and lines."""
    connected("export", str(job), "--format", "parquet", "-o", str(tmp_path))
    for sent in (True, False):
        receipt = json.loads(connected("import", "parquet", str(tmp_path), "--json").out)
        assert receipt["points"] == {"source": 5002, "stored": 5002, "skipped": {}, "missing": 0}
        assert receipt["lines"]["stored"] == 2
        assert bool(receipt["imported"][0]["sent"]) is sent
    jobs = rows(resources.engine, training_jobs, "name", "status", "params", order=("created_at",))
    assert jobs[0] == jobs[1] == ("digits", "completed", {"lr": 0.1, "deep": True, "size": 3, "opt": "adam"})
    values = rows(resources.engine, training_metrics, "job_id", "step", "loss", "accuracy", "extra_metrics")
    before = [str(row[1:]) for row in values if row[0] == job]
    # Times are in milliseconds there: values of one millisecond are in the order of their steps.
    assert [str(row[1:]) for row in values if row[0] != job] == before
    assert sorted(rows(resources.engine, training_logs, "content")) == ["one", "one", "two\u2028", "two\u2028"]


@pytest.mark.usefixtures("workers")
def test_files_of_neptune_exporter_are_read(connected: Trainwire, resources: Resources, tmp_path: Path) -> None:
    """Several runs in several parts are jobs; what is no number is counted."""
    common = {"project_id": "team/vision", "run_id": "RUN-1", "attribute_path": "train/loss"}
    number = {**common, "attribute_type": "float_series", "float_value": 0.5}
    parts = [
        [
            {**common, "attribute_path": "sys/name", "attribute_type": "string", "string_value": "resnet"},
            {**common, "attribute_path": "sys/failed", "attribute_type": "bool", "bool_value": True},
            {**number, "step": Decimal(1), "timestamp": 1000},
            {**number, "run_id": "RUN-2", "step": Decimal("0.5"), "timestamp": 1000},
        ],
        [
            {**number, "step": Decimal(2), "timestamp": 2000, "float_value": math.nan},
            {**common, "attribute_path": "w", "attribute_type": "histogram_series"},
            {**common, "attribute_path": "model", "attribute_type": "file", "file_value": {"path": "model.pt"}},
            {**common, "attribute_path": "note", "attribute_type": "string_series", "string_value": "hi"},
        ],
    ]
    for number_of_part, part in enumerate(parts):
        table = pyarrow.Table.from_pylist(part, schema=schema(pyarrow))
        pyarrow.parquet.write_table(table, tmp_path / f"part_{number_of_part}.parquet")
    receipt = json.loads(connected("import", "parquet", str(tmp_path), "--json").out)
    assert receipt["points"]["stored"] == 2
    assert receipt["points"]["skipped"] == {
        "histogram_series: not a number": 1, "step is not a whole number": 1,
    }  # fmt: skip
    assert receipt["files"]["skipped"] == {"files are not copied": 1}
    assert rows(resources.engine, training_logs, "content") == ["note (step 0): hi"]
    jobs = dict(rows(resources.engine, training_jobs, "name", "status", order=("name",)))
    assert jobs == {"RUN-2": "ended", "resnet": "failed"}
    assert {run["name"] for run in receipt["imported"]} == jobs.keys()


@pytest.mark.usefixtures("workers")
def test_a_damaged_page_of_parquet_is_named(connected: Trainwire, job: int, tmp_path: Path) -> None:
    """A file that breaks in the middle fails the command, with its path and a receipt."""
    connected("export", str(job), "--format", "parquet", "-o", str(tmp_path))
    path = tmp_path / "trainwire" / "1_part_0.parquet"
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
    places = [group.column(index) for index in range(group.num_columns)]
    column = next(each for each in places if each.path_in_schema == "float_value")
    data = bytearray(path.read_bytes())
    for at in range(column.data_page_offset, column.data_page_offset + 400):
        data[at] ^= 0x5A
    path.write_bytes(data)
    done = connected("import", "parquet", str(tmp_path))
    assert done.code == 1
    assert str(path) in done.err
    assert "Traceback" not in done.err
    assert "1 skipped (read up to an error)" in done.out


@pytest.mark.parametrize("content", [b"", b"PAR1 no", None])
def test_what_is_no_parquet_is_named(connected: Trainwire, tmp_path: Path, content: bytes | None) -> None:
    """An empty or damaged file, or one of other columns, is an error with its path."""
    path = tmp_path / "part_0.parquet"
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    done = connected("import", "parquet", str(tmp_path))
    assert done.code == 1
    assert str(path) in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("1", "--format", "xml"), "'xml'"),
        (("1", "--format", "parquet"), "--output DIR"),
        (("77",), "77"),
        (("1", "-o", "/proc/no"), "/proc/no"),
    ],
)
@pytest.mark.usefixtures("job")
def test_what_cannot_be_exported_is_named(connected: Trainwire, arguments: tuple[str, ...], named: str) -> None:
    """One sentence names the value and what to do."""
    done = connected("export", *arguments)
    assert done.code == 1
    assert named in done.err
    assert "Traceback" not in done.err
