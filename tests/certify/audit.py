"""The audit after a run: compares Postgres, Loki, Redis, the spool and the receipt with the expected contents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import requests
from sqlalchemy import Connection, text

from tests.certify.scenarios import Expected
from trainwire.ingest.spool.folder import source_folders
from trainwire.schemas.keys import KINDS
from trainwire.stores.mlflow.runs import JOB_TAG, experiment_ids, get_run_metrics, search_runs, tag_filter
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.deletion import find_deletion
from trainwire.stores.postgres.jobs.job_lookup import find_job

if TYPE_CHECKING:
    from tests.certify.world import World

TABLES = ("training_jobs", "training_attempts", "training_logs", "training_metrics", "training_checkpoints")


def problems(world: World, expected: Expected, *, was_killed: bool) -> list[str]:
    """Return all differences as texts; of a killed trainer (`was_killed`), only the first rows may be stored."""
    with world.engine.connect() as connection:
        if expected.is_deleted:
            is_forgotten = expected.is_forgotten or was_killed  # its first message was not sent
            found = [*_left_of_deleted(connection, world.job, may_be_unknown=is_forgotten)]
        else:
            found = [*_of_postgres(world, connection, expected, was_killed=was_killed)]
        stored = _lines(connection, world.job)
        if expected.shards and not was_killed:
            found += _of_folder(world, connection, expected.shards)
        if expected.kept_uploads is not None and not was_killed:
            found += _of_uploads(world, connection, expected.kept_uploads)
        if world.bucket_url is not None and expected.is_deleted and (left := world.left_in_bucket()):
            found += [f"the bucket has {left} of the deleted job"]
        if expected.has_mlflow:
            found += _of_mlflow(world, connection, expected, was_killed=was_killed)
        if expected.alerts:
            found += _of_alerts(world, connection, expected.alerts, was_killed=was_killed)
        if world.is_watched and not was_killed:
            found += _of_browser(world, stored, expected)
    if expected.has_files:
        found += _of_files(world, stored)
    in_loki = stored if expected.loki is None else expected.loki
    may_have_more = world.is_restored and (was_killed or not expected.is_ordered)
    found += _of_loki(world, in_loki, may_have_more=may_have_more)
    return [*found, *_of_redis(world), *_of_trainer(world, was_killed=was_killed)]


def _of_postgres(world: World, connection: Connection, expected: Expected, *, was_killed: bool) -> Iterator[str]:
    job_id, is_ordered = world.job, expected.is_ordered
    job = find_job(connection, job_id)
    if job is None:
        if not was_killed:
            yield "there is no job"
        return
    lines = _lines(connection, job_id)
    if world.has_launcher:  # it also logs what trainwire itself prints about the failed call
        lines = [line for line in lines if line in expected.lines]
    yield from _of_rows(
        "lines", lines, expected.lines, was_killed=was_killed, is_ordered=is_ordered and not world.has_launcher
    )
    steps = _values(connection, f"SELECT step FROM training_metrics WHERE job_id = {job_id} ORDER BY seq")
    yield from _of_rows("steps", steps, expected.steps, was_killed=was_killed, is_ordered=is_ordered)
    uris = _values(
        connection,
        f"SELECT uri FROM training_checkpoints WHERE job_id = {job_id} AND uri LIKE '/elsewhere%' ORDER BY seq",
    )
    yield from _of_rows("checkpoints", uris, expected.checkpoints, was_killed=was_killed)
    yield from _of_numbers(connection, job_id)
    complete = find_completeness(connection, job)
    if was_killed:
        # Under a launcher a process that was killed before its first message is unknown (docs/certificate.md).
        if complete.state == "complete" and steps != expected.steps and not world.has_launcher:
            yield f"a part is lost, and the status is {complete.line}"
        return
    wrong = {name: getattr(job, name) for name, value in expected.job.items() if getattr(job, name) != value}
    if wrong:
        yield f"the job has {wrong}, not {expected.job}"
    if complete.state != "complete":
        yield f"status: {complete.line}"


def _of_numbers(connection: Connection, job_id: int) -> Iterator[str]:
    for table in TABLES[2:]:
        seqs = _values(connection, f"SELECT seq FROM {table} WHERE job_id = {job_id} ORDER BY seq")
        if seqs != list(range(1, len(seqs) + 1)):
            yield f"{table} has the numbers {seqs}"
    if letters := _values(connection, "SELECT reason || ': ' || detail FROM dead_letters"):
        yield f"dead letters: {letters}"


def _left_of_deleted(connection: Connection, job_id: int, *, may_be_unknown: bool) -> Iterator[str]:
    deletion = find_deletion(connection, job_id)
    has_finished = may_be_unknown if deletion is None else deletion.is_finished
    if not has_finished:
        yield f"the deletion has not finished: {deletion}"
    for table in TABLES:
        column = "id" if table == "training_jobs" else "job_id"
        if count := _values(connection, f"SELECT count(*) FROM {table} WHERE {column} = {job_id}")[0]:
            yield f"{table} has {count} rows of the deleted job"


def _of_folder(world: World, connection: Connection, shards: int) -> Iterator[str]:
    columns = "uri, upload_error, verify_error, verified_at"
    query = f"SELECT {columns} FROM training_checkpoints WHERE job_id = {world.job} AND step = 6"
    rows = connection.execute(text(query)).all()
    if len(rows) != 1:
        yield f"the folder has the rows {rows}"
        return
    uri, upload_error, verify_error, verified_at = rows[0]
    if upload_error is not None:
        if "file." not in world.failed_call:
            yield f"the folder is not uploaded: {upload_error}"
        return
    if verified_at is None:
        yield f"the folder is not verified: {verify_error}"
    names = {each["Key"].rpartition("/")[2]: each["Size"] for each in world.objects(uri)}
    if names.keys() != {"manifest.json", *(f"shard-{number}.bin" for number in range(shards))}:
        yield f"the folder in the bucket has {names}"


def _of_uploads(world: World, connection: Connection, kept: frozenset[int]) -> Iterator[str]:
    columns = "step, uri, upload_error, verified_at IS NOT NULL, deleted_at IS NULL"
    query = f"SELECT {columns} FROM training_checkpoints WHERE job_id = {world.job} AND step >= 10"
    uploads = connection.execute(text(query)).all()
    failed = [upload for upload in uploads if upload[2] is not None]
    if failed and "file." not in world.failed_call:
        yield f"not uploaded: {failed}"
    for step, uri, error, is_verified, is_kept in uploads:
        if error is not None:
            continue
        # Which file is kept depends on the uploads that did not fail.
        if not is_verified or (not failed and is_kept != (step in kept)):
            yield f"the upload of step {step} is verified: {is_verified}, kept: {is_kept}"
        if uri.startswith("s3:") and bool(world.objects(uri)) != is_kept:
            yield f"the bucket has {world.objects(uri)} of step {step}, kept: {is_kept}"


def _of_alerts(
    world: World, connection: Connection, expected: frozenset[str], *, was_killed: bool
) -> Iterator[str]:
    rows = {
        f"trainwire-alert-{number}": (rule, state)
        for number, rule, state in connection.execute(text("SELECT id, rule, state FROM alerts"))
    }
    rules = Counter(rule for rule, _ in rows.values())
    if rules != Counter(expected) and not (was_killed and rules <= Counter(expected)):
        yield f"there are alerts of {rules}"
    if unsent := {each for each in rows.values() if each[1] != "sent"}:
        yield f"alerts are not sent: {unsent}"
    received = {each.headers["webhook-id"]: each.document["data"]["rule"] for each in world.receiver.requests}
    if received != {name: rule for name, (rule, _) in rows.items()}:
        yield f"received alerts: {received}"


def _of_mlflow(world: World, connection: Connection, expected: Expected, *, was_killed: bool) -> Iterator[str]:
    api = world.mlflow.api
    tagged = search_runs(api, experiment_ids(api), tag_filter({JOB_TAG: str(world.job)}), limit=9)
    own = [run for run in tagged if run.run_id == world.own_run]
    if len(own) != bool(world.own_run):
        yield f"the run of the trainer is not in MLflow: {tagged}"
    mirrors = [run for run in tagged if run.is_mirror]
    if expected.is_deleted:
        if mirrors:
            yield f"MLflow has runs of the deleted job: {mirrors}"
        return
    rows = [tuple(row) for row in connection.execute(text(_METRICS), {"job": world.job})]
    if len(mirrors) != 1:
        if rows or not was_killed:
            yield f"MLflow has {len(mirrors)} runs of the job"
        return
    run = mirrors[0]
    ended = "KILLED" if own else "FINISHED"
    if not was_killed and (run.status, run.params.get("lr")) != (ended, "0.1"):
        yield f"the run in MLflow is {run}"
    if own:  # which has the later metrics
        return
    for column, name in enumerate(("loss", "f1"), start=1):
        points = [(point.step, point.value) for point in get_run_metrics(api, run.run_id, [name])[name]]
        if points != (stored := [(row[0], row[column]) for row in rows]):
            yield f"{name} in MLflow: {points}, not {stored}"


_METRICS = (
    "SELECT step, loss, CAST(extra_metrics->>'f1' AS double precision) FROM training_metrics "
    "WHERE job_id = :job ORDER BY seq"
)


def _of_files(world: World, stored: list[tuple[str, str]]) -> Iterator[str]:
    files = sorted((world.folder / "jsonl").glob(f"{world.job}-*/*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    if (found := [(line["log_type"], line["content"]) for line in lines]) != stored:
        yield f"the files have {found}"


def _of_browser(world: World, stored: list[tuple[str, str]], expected: Expected) -> Iterator[str]:
    watched = world.folder / "watched.json"
    received = json.loads(watched.read_text()) if watched.exists() else None
    if received != [[line for _, line in stored], expected.job["status"]]:
        yield f"the browser received {received}"


def _lines(connection: Connection, job_id: int) -> list[tuple[str, str]]:
    query = f"SELECT log_type, content FROM training_logs WHERE job_id = {job_id} ORDER BY seq"
    return [tuple(row) for row in connection.execute(text(query))]


def _values(connection: Connection, query: str) -> list[Any]:
    return list(connection.execute(text(query)).scalars())


def _of_rows(
    name: str, found: Sequence[Any], expected: Sequence[Any], *, was_killed: bool, is_ordered: bool = True
) -> Iterator[str]:
    lacking, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    if more:
        yield f"{name}: doubled or foreign {[*more.elements()]}"
    if lacking and not was_killed:
        yield f"{name}: lost {[*lacking.elements()]}"
    is_ordered = is_ordered and len(set(expected)) == len(expected)  # not the rows of two ranks
    if is_ordered and not more and list(found) != list(expected[: len(found)]):
        yield f"{name}: {found} are not the first ones in order"


def _of_loki(world: World, stored: list[tuple[str, str]], *, may_have_more: bool) -> Iterator[str]:
    answer = requests.get(f"{world.loki_url}/twin/entries", params={"job_id": str(world.job)}, timeout=10).json()
    found = [(entry["labels"]["log_type"], entry["line"]) for entry in answer]
    if Counter(found) != Counter(stored):
        lacking, more = Counter(stored) - Counter(found), Counter(found) - Counter(stored)
        if may_have_more and not lacking:  # what a killed trainer had sent between backup and restore
            return
        yield f"Loki lacks {[*lacking.elements()]}, and has {[*more.elements()]} more"


def _of_redis(world: World) -> Iterator[str]:
    names = [f"ingest:{{*}}:{kind}" for kind in KINDS]
    left = {key: world.redis.xlen(key) for name in names for key in world.redis.scan_iter(name)}
    if any(left.values()):
        yield f"entries left in {left}"
    if halted := world.redis.hgetall("ingest:halted"):
        yield f"halted: {halted}"


def _of_trainer(world: World, *, was_killed: bool) -> Iterator[str]:
    crashes = world.folder / "crashes"
    if crashes.exists():
        yield f"a task raised: {crashes.read_text()}"
    spool = world.folder / "spool"
    if spool.exists() and (left := [str(path) for path in source_folders(spool)]):
        yield f"the spool has {left}"
    if was_killed or not world.has_receipts:
        return
    receipts = sorted(world.folder.glob("receipt*.json"))
    if not receipts:
        yield "there is no receipt"
    for receipt in receipts:
        counts = json.loads(receipt.read_text())
        if counts["dropped"] or counts["lost"]:
            yield f"the receipt has losses: {counts}"
        kept = {
            kind: counts["stored"].get(kind, 0) + counts["spooled"].get(kind, 0) for kind in counts["produced"]
        }
        if kept != counts["produced"] and counts["sent"] != counts["produced"]:
            yield f"messages are neither stored, spooled nor sent: {counts}"
