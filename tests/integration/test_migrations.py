"""Migrations: from an empty database to the tables of the code, and the errors for other revisions."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from math import inf, isnan, nan
from pathlib import Path
from random import Random

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, make_url, text

from trainwire.schemas import migrations
from trainwire.schemas.migrations import (
    WrongSchemaRevision,
    _config,
    check_revision,
    current_revision,
    head_revision,
    upgrade,
)
from trainwire.schemas.tables import metadata
from trainwire.stores.rows.metric_blocks import Points, encode_bounds, encode_rows, encode_values
from trainwire.workers.rollups.series_blocks import Series


@pytest.fixture
def empty(database_url: str) -> Iterator[Engine]:
    """An empty database beside the others."""
    url = make_url(database_url).set(drivername="postgresql+psycopg")
    server = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"{url.database}_empty"
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = sqlalchemy.create_engine(url.set(database=name))
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    server.dispose()


def test_an_empty_database_gets_the_tables_of_the_code(empty: Engine) -> None:
    """After the migrations the tables equal schemas/tables, and a second run changes nothing."""
    for _ in range(2):
        with empty.begin() as connection:
            upgrade(connection)
    with empty.connect() as connection:
        check_revision(connection)
        assert current_revision(connection) == head_revision()
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_the_newest_revision_is_that_of_alembic() -> None:
    """The revisions in the names of the files are those in the files; the newest is their only head."""
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [head_revision()]
    for each in script.walk_revisions():
        assert Path(each.path).name.startswith(f"{each.revision}_")


def test_the_revision_of_a_database_is_that_of_alembic(empty: Engine) -> None:
    """The revision of a database is None before its first migration, and then that which Alembic reads."""
    with empty.connect() as connection:
        assert current_revision(connection) is None
    with empty.begin() as connection:
        upgrade(connection)
        assert current_revision(connection) == MigrationContext.configure(connection).get_current_revision()


def test_a_database_without_tables_names_the_command(empty: Engine) -> None:
    """Workers on an empty database refuse with the command to run."""
    with (
        empty.connect() as connection,
        pytest.raises(WrongSchemaRevision, match=r"has no trainwire tables, .* run `trainwire migrate`"),
    ):
        check_revision(connection)


ADDED = (
    "CREATE TABLE newer_things (id bigint PRIMARY KEY)",
    "ALTER TABLE training_jobs ADD COLUMN newer text",
    "ALTER TABLE training_logs ADD COLUMN newer integer NOT NULL DEFAULT 0",
)


@pytest.mark.parametrize(
    ("revision", "changes", "fault"),
    [
        ("9999", ADDED, None),
        ("9999", ["ALTER TABLE training_jobs DROP COLUMN name"], "'9999', in which training_jobs.name is missing"),
        ("9999", ["ALTER TABLE training_logs RENAME TO lines"], "training_logs.content is missing"),
        (
            "9999",
            ["ALTER TABLE training_logs ADD COLUMN newer integer NOT NULL"],
            "training_logs.newer has no default",
        ),
        ("0001", (), "at schema revision '0001', this trainwire needs"),
        ("a1b2c3", (), "at schema revision 'a1b2c3', this trainwire needs"),
    ],
)
def test_newer_tables_are_worked_with_while_they_only_add(
    empty: Engine, revision: str, changes: Sequence[str], fault: str | None
) -> None:
    """An old process works at a newer revision that has all that it uses; a missing column or table is named."""
    with empty.begin() as connection:
        upgrade(connection)
        for change in (*changes, f"UPDATE alembic_version SET version_num = '{revision}'"):
            connection.execute(text(change))
    with empty.connect() as connection:
        if fault is None:
            check_revision(connection)
        else:
            with pytest.raises(WrongSchemaRevision, match=fault):
                check_revision(connection)


def test_migrations_only_add(empty: Engine) -> None:
    """The rule of docs/deploy.md: a column that an older version uses is still there at the newest revision."""
    with empty.begin() as connection:
        command.upgrade(_config(connection), "0009")  # the newest when the rule began
        before = inspect(connection).get_multi_columns()
    with empty.begin() as connection:
        upgrade(connection)
        after = inspect(connection).get_multi_columns()
    for table, columns in before.items():
        old, new = ({column["name"]: column for column in found} for found in (columns, after[table]))
        assert old.keys() <= new.keys()
        for name in old:
            assert (str(new[name]["type"]), new[name]["nullable"]) == (
                str(old[name]["type"]),
                old[name]["nullable"],
            )
        for name in new.keys() - old.keys():
            assert new[name]["nullable"] or new[name]["default"] is not None, f"{table}.{name}"


def test_settled_jobs_and_cursors_survive_0014(empty: Engine) -> None:
    """Marks and Loki's newest times are where the new version reads them; a downgrade undoes it."""
    with empty.begin() as connection:
        command.upgrade(_config(connection), "0012")
        connection.execute(
            text(
                "INSERT INTO training_jobs (id, logs_settled, metrics_settled) "
                "VALUES (1, true, true), (2, true, false), (3, false, true), (4, false, false)"
            )
        )
        newest = "INSERT INTO delivery_cursors (sink, job_id, newest_ns) VALUES ('loki', 1, :newest)"
        connection.execute(text(newest), {"newest": '{"stdout": 5}'})
        upgrade(connection)
        settled = connection.execute(text("SELECT settled FROM training_jobs ORDER BY id")).scalars().all()
        assert settled == ["loki,mlflow", "loki", "mlflow", ""]
        assert connection.execute(text("SELECT state FROM delivery_cursors")).scalar_one() == {"stdout": 5}
        command.downgrade(_config(connection), "0012")
        assert "settled" not in {column["name"] for column in inspect(connection).get_columns("training_jobs")}


def test_extremes_of_stored_blocks_are_computed_by_0023(empty: Engine) -> None:
    """Existing series get the lowest and highest value of all their points, whichever blocks these are in."""
    random = Random(7)
    values = [random.gauss(0, 1) for _ in range(128 * 21 + 5)]
    values[3] = nan
    numbered = array("q", range(len(values)))
    points = Points(numbered, numbered, numbered, numbered, array("d", values))
    with empty.begin() as connection:
        command.upgrade(_config(connection), "0020")
        connection.execute(
            text("INSERT INTO metric_series (job_id, series, attempt, name) VALUES (1, 1, 1, 'a'), (1, 2, 1, 'b')")
        )
        for (level, number), (part, bounds) in Series(1, ("a", 1, None), points).blocks({}).items():
            row = {"level": level, "number": number, "seq": bounds.last_seq, "bounds": encode_bounds(bounds)}
            stored = row | {"points": encode_rows(part) + encode_values(part)}
            connection.execute(
                text("INSERT INTO metric_blocks VALUES (1, 1, :level, :number, :seq, :bounds, :points)"), stored
            )
        upgrade(connection)
        found = connection.execute(text("SELECT low, high FROM metric_series ORDER BY series")).all()
    numbers = [value for value in values if not isnan(value)]
    assert found == [(min(numbers), max(numbers)), (inf, -inf)]


def test_a_database_from_the_future_is_left_alone(empty: Engine) -> None:
    """A revision that this version does not have is named, and not migrated."""
    with empty.begin() as connection:
        upgrade(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    unknown = pytest.raises(WrongSchemaRevision, match="'9999', which this trainwire does not know")
    with empty.connect() as connection, unknown:
        upgrade(connection)
