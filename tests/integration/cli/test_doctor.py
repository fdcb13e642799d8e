"""`trainwire doctor` on real servers, each broken in one way."""

from __future__ import annotations

import json
import re

import pytest
from sqlalchemy import Engine, text

from tests.factories import Sender, logs
from tests.integration.cli.conftest import Doctor, Trainwire
from tests.integration.conftest import Bucket
from tests.twins.loki import LokiTwin
from trainwire.schemas.keys import HALTED_KEY, stream_key
from trainwire.schemas.migrations import head_revision
from trainwire.workers import findings
from trainwire.workers.sinks.loki.plugin import LOKI, _limits


def test_healthy_servers_without_processes(doctor: Doctor) -> None:
    """The embedded servers pass; a missing beat and missing workers are found."""
    found = doctor.look()
    bad = {name for name, each in found.items() if each["level"] == "error"}
    assert bad == {
        "processes.beat",
        *(f"processes.queue-{queue}" for queue in ("ingest", "beat", "notify", "checkpoints")),
    }
    assert found["processes.beat"]["remedy"] == "start one: python -m trainwire.workers beat"
    assert doctor.code == 2


def test_a_postgres_whose_commits_do_not_last(doctor: Doctor, engine: Engine) -> None:
    """synchronous_commit = off, set for the role alone, is found."""
    with engine.begin() as connection:
        connection.execute(text("ALTER ROLE CURRENT_USER SET synchronous_commit = off"))
    try:
        found = doctor.look()
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER ROLE CURRENT_USER RESET synchronous_commit"))
    assert found["postgres.durability"]["level"] == "error"
    assert "synchronous_commit is off" in found["postgres.durability"]["says"]


def test_a_postgres_that_is_read_only(doctor: Doctor, engine: Engine) -> None:
    """default_transaction_read_only, set for the role, is an error that names the remedy."""
    with engine.begin() as connection:
        connection.execute(text("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on"))
    try:
        found = doctor.look()
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER ROLE CURRENT_USER RESET default_transaction_read_only"))
    assert found["postgres.role"]["level"] == "error"
    assert "is read-only" in found["postgres.role"]["says"]


def test_a_database_of_another_revision(doctor: Doctor, engine: Engine) -> None:
    """The remedy is `trainwire migrate`, and no table that may be missing is read."""
    with engine.begin() as connection:
        was = connection.execute(text("UPDATE alembic_version SET version_num = '0001' RETURNING 1")).scalar_one()
        assert was == 1
    try:
        found = doctor.look()
    finally:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": head_revision()})
    assert found["postgres.schema"]["level"] == "error"
    assert found["postgres.schema"]["remedy"] == "trainwire migrate"


def test_a_database_of_a_newer_version(doctor: Doctor, engine: Engine) -> None:
    """A process of an older version during a rolling upgrade is a warning, and its tables are checked."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        found = doctor.look()
    finally:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": head_revision()})
    assert (found["postgres.schema"]["level"], found["postgres.schema"]["remedy"]) == (
        "warning",
        "install the newer trainwire here",
    )
    assert "is at schema revision '9999', newer than" in found["postgres.schema"]["says"]


def test_a_postgres_that_is_down(doctor: Doctor, alone: pytest.MonkeyPatch) -> None:
    """A Postgres that does not answer is one error; the password is not shown."""
    alone.setenv("DATABASE_URL", "postgresql://somebody:verysecret@127.0.0.1:1/db")
    found = doctor.look()
    assert found["postgres.answers"]["level"] == "error"
    assert "verysecret" not in json.dumps(found)


@pytest.mark.parametrize(("off_s", "level"), [(1.0, "ok"), (30.0, "warning"), (-400.0, "error")])
def test_clocks_that_disagree(off_s: float, level: str) -> None:
    """A clock difference of seconds is a warning, of minutes an error; the time of the query does not count."""
    part = findings.Part("redis")
    assert findings.clock(part, 1000.0 + off_s, 1000.0, 1000.5).level == level


def test_streams_that_wait_and_that_are_halted(doctor: Doctor, sender: Sender) -> None:
    """A wait of a minute is a warning, of ten minutes an error; a halted stream has its reason."""
    now_ms = int(sender.client.time()[0]) * 1000
    sender.send(logs("old"), entry_id=f"{now_ms - 90_000}-1")
    assert doctor.look()["flow.streams"]["level"] == "warning"
    sender.send(logs("older"), job=2, entry_id=f"{now_ms - 900_000}-1")
    sender.client.hset(HALTED_KEY, stream_key("logs", 2), "all of it is garbage")
    found = doctor.look()
    assert found["flow.streams"]["level"] == "error"
    assert "logs of shard 2" in found["flow.streams"]["says"]
    assert "all of it is garbage" in found["flow.halted"]["says"]


def test_a_sink_that_is_down_and_dead_letters(doctor: Doctor, engine: Engine, alone: pytest.MonkeyPatch) -> None:
    """A sink that is down and dead letters are warnings."""
    alone.setenv("LOKI_ENABLED", "true")
    alone.setenv("LOKI_URL", "http://127.0.0.1:1")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO sink_states (sink, down_since) VALUES ('loki', now() - interval '1 h')")
        )
        connection.execute(
            text(
                "INSERT INTO dead_letters (stream, entry_id, kind, reason, detail, raw, raw_sha256) "
                "VALUES ('s', '1-1', 'logs', 'invalid', 'x', '', '')"
            )
        )
    found = doctor.look()
    assert found["flow.sink-loki"]["level"] == "warning"
    assert found["flow.dead-letters"]["says"] == "1 dead letters"
    assert found["loki.ready"]["level"] == "error", "and here it does not answer either"


def test_a_loki_that_is_ready(doctor: Doctor, loki: LokiTwin, alone: pytest.MonkeyPatch) -> None:
    """A Loki that is ready and shows suitable limits passes, except for late lines that it does not return."""
    alone.setenv("LOKI_ENABLED", "true")
    found = doctor.look()
    assert (found["loki.ready"]["level"], found["loki.limits"]["level"]) == ("ok", "ok")
    assert found["loki.late-lines"]["level"] == "warning"
    assert found["loki.late-lines"]["says"].startswith(
        "lines that come over 2h41m0s late are found half an hour after"
    )
    assert "query_store_max_look_back_period: -1ns" in found["loki.late-lines"]["remedy"]
    assert loki.url


def test_limits_of_loki_that_refuse_our_lines() -> None:
    """Disabled structured metadata or unordered lines are errors, with the settings."""
    config = "limits_config:\n  allow_structured_metadata: false\n  unordered_writes: true\n"
    (found,) = _limits(config)
    assert (found.level, found.part) == ("error", LOKI.name)
    assert "allow_structured_metadata: true" in (found.remedy or "")
    assert [each.level for each in _limits("limits_config:\n  unordered_writes: true\n")] == ["ok"]


def test_the_operations_of_the_object_store(doctor: Doctor, bucket: Bucket, alone: pytest.MonkeyPatch) -> None:
    """All operations are tried, and no object is left; a missing bucket is an error."""
    alone.setenv("TRAINWIRE_CHECKPOINT_BUCKET", bucket.name)
    found = doctor.look()
    assert {found[f"s3.{name}"]["level"] for name in ("put", "head", "read", "list", "delete")} == {"ok"}
    assert bucket.client.list_objects_v2(Bucket=bucket.name)["KeyCount"] == 0
    alone.setenv("TRAINWIRE_CHECKPOINT_BUCKET", "no-such-bucket")
    assert doctor.look()["s3.put"]["level"] == "error"


def test_an_object_store_that_forbids_uploads(doctor: Doctor, bucket: Bucket, alone: pytest.MonkeyPatch) -> None:
    """A policy that denies writing is named with the action to allow."""
    alone.setenv("TRAINWIRE_CHECKPOINT_BUCKET", bucket.name)
    bucket.forbid("checkpoints/", "s3:PutObject")
    try:
        found = doctor.look()
    finally:
        bucket.allow()
    if found["s3.put"]["level"] == "ok":
        pytest.skip("this object store does not enforce policies")
    assert "s3:PutObject" in found["s3.put"]["remedy"]


def test_an_mlflow_that_is_down(doctor: Doctor, alone: pytest.MonkeyPatch) -> None:
    """An MLflow that does not answer is an error."""
    alone.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    found = doctor.look()
    assert found["mlflow.answers"]["level"] == "error"
    assert found["processes.queue-deliver-mlflow"]["level"] == "error"


@pytest.mark.usefixtures("doctor")
def test_a_person_reads_findings_with_their_remedies(trainwire: Trainwire) -> None:
    """Without --json each finding is a line and its remedy the next."""
    done = trainwire("doctor")
    assert "-> start one: python -m trainwire.workers beat" in done.out
    assert re.search(r"^[1-9]\d* errors?, \d+ warnings?, \d+ checks? passed$", done.out, re.MULTILINE)
    assert done.code == 2


def test_without_servers_the_doctor_names_the_settings(trainwire: Trainwire) -> None:
    """Without known servers the doctor fails with an error of the settings and exit code 2."""
    done = trainwire("doctor", "--json")
    assert done.code == 2
    assert json.loads(done.out)[0]["check"] == "settings"
