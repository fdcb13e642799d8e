"""The client against a real Postgres and a real gateway: the same cases for both ways."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import insert, text, update

import trainwire
from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs
from tests.gateway_server import GatewayServer
from tests.integration.conftest import Bucket
from tests.integration.gateway.feed_clients import GatewayProcess, Trainer
from tests.tls_servers import Tls
from trainwire import Client, ClientError, JobNotFound
from trainwire.client.errors import GatewayUnavailable
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import training_attempts, training_jobs, training_metrics
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.rows import packed_metrics
from trainwire.workers.resources import Resources

_jobs = count(7000)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TRAINWIRE_URL", "GATEWAY_URL", "TRAINWIRE_TOKEN", "DATABASE_URL", "TRAINWIRE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def feed_gateway(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[GatewayProcess]:
    """A gateway process, which can be restarted."""
    with GatewayProcess(tmp_path, database_url, redis_url) as gateway:
        yield gateway


@pytest.fixture
def trainer(resources: Resources) -> Trainer:
    """A trainer that publishes events."""
    return Trainer(resources, next(_jobs))


@pytest.fixture(params=["http", "postgres"])
def reader(request: pytest.FixtureRequest, gateway: GatewayServer, database_url: str) -> Iterator[Client]:
    """A client of each way, on the empty test servers."""
    given: dict[str, Any] = {"url": gateway.url} if request.param == "http" else {"database_url": database_url}
    with Client(**given) as client:
        yield client


@pytest.fixture
def job(sender: Sender, resources: Resources) -> int:
    """A job of two ranks with sparse metrics, non-finite values and names of our own columns."""
    number = next(_jobs)
    sender.send(Metrics(name=f"digits-{number}", params={"lr": 0.1}, tags={"kind": "test"}), job=number)
    points = [
        Point(ts=NOW_NS, step=0, values={"loss": 1.0, "step": 7.0}),
        Point(ts=NOW_NS + 1000, values={"val/loss": math.nan}),
        Point(ts=NOW_NS + 2000, step=2, epoch=1, values={"loss": math.nan, "grad": math.inf}),
        Point(ts=NOW_NS + 3000, step=3, epoch=1, values={"loss": 0.0, "val/loss": 0.5}),
    ]
    sender.send(Metrics(points=points[:2]), job=number)
    sender.send(Metrics(points=points[2:], rank=1), job=number, source="1-test")
    sender.send(logs("one", "two ERROR", "three"), job=number)
    sender.send(completion(error_message="boom", exit_code=1, status="failed"), job=number)
    for kind in ("metrics", "logs", "completions"):
        drain(resources, kind, number)
    return number


def test_every_point_comes_back(reader: Client, job: int) -> None:
    """All values of all metrics with their places; NaN and infinities are values, missing ones are not there."""
    found = reader.job(job).metrics(every_point=True)
    assert list(found) == ["grad", "loss", "step", "val/loss"]
    loss = found["loss"]
    assert list(loss.seq) == [1, 3, 4]
    assert [loss.value[0], loss.value[2]] == [1.0, 0.0]
    assert math.isnan(loss.value[1])
    assert (list(loss.step), list(loss.epoch), list(loss.rank)) == ([0, 2, 3], [None, 1, 1], [None, 1, 1])
    assert [ts - loss.ts[0] for ts in loss.ts] == [0, 2000, 3000]
    assert loss.ts[0] == NOW_NS // 1000 * 1000
    assert list(loss.attempt) == [1, 1, 1]
    assert found["grad"].value[0] == math.inf
    assert math.isnan(found["val/loss"].value[0])
    assert found["val/loss"].value[1] == 0.5


def test_columns_have_none_where_a_row_has_no_value(reader: Client, job: int) -> None:
    """A row is one point; a metric with the name of a column of ours is told apart."""
    found = reader.job(job).metrics()
    columns = found.columns
    assert found.rows == 4
    assert list(columns["step"]) == [0, None, 2, 3]
    assert list(columns["metric.step"]) == [7.0, None, None, None]
    assert [value is None for value in columns["val/loss"]] == [True, False, True, False]
    assert {len(column) for column in columns.values()} == {4}


def test_no_two_metrics_share_a_column(reader: Client, sender: Sender, resources: Resources) -> None:
    """A metric `step` does not take the column of another metric that is called `metric.step`."""
    number = next(_jobs)
    values = {"step": 1.0, "metric.step": 2.0, "metric.metric.step": 3.0}
    sender.send(Metrics(points=[Point(ts=NOW_NS, step=0, values=values)]), job=number)
    drain(resources, "metrics", number)
    columns = reader.job(number).metrics().columns
    assert sorted(columns[name][0] for name in columns if name.startswith("metric.")) == [1.0, 2.0, 3.0]


def test_named_metrics_alone_are_read(reader: Client, job: int) -> None:
    """One name, or several, of stored columns and of others; rows without any of them are left out."""
    found = reader.job(job).metrics("val/loss")
    assert (list(found), found.rows, list(found["val/loss"].seq)) == (["val/loss"], 2, [2, 4])
    assert list(reader.job(job).metrics(["loss", "grad", "none"])) == ["grad", "loss"]
    assert reader.job(job).metrics(["none"]).rows == 0
    many = [f"none{number}" for number in range(packed_metrics.MOST_EXPRESSIONS + 1)]
    assert list(reader.job(job).metrics([*many, "grad", "loss"])) == ["grad", "loss"]
    with pytest.raises(KeyError, match=r"no metric 'lose' here: val/loss"):
        found["lose"]


def test_metrics_of_any_name_are_found(reader: Client, sender: Sender, resources: Resources) -> None:
    """Commas, backslashes and white space are parts of a name, and a list of names has any length."""
    number = next(_jobs)
    names = ["a,b", " a ", "a\\", "a\\,b", ",", "\t", "f(x, y)", "\U0001f4a5" * 900]
    sender.send(Metrics(points=[Point(ts=NOW_NS, values=dict.fromkeys([*names, "a", "b"], 0.5))]), job=number)
    drain(resources, "metrics", number)
    found = reader.job(number)
    for name in names:
        assert list(found.metrics(name)) == [name]
    assert list(found.metrics(names)) == sorted(names)


WRONG_ARGUMENTS: dict[str, tuple[Callable[[Any, int], Any], str]] = {
    "job None": (lambda client, _: client.job(None), "reference=None is no job: give a number, a name, or 'last'"),
    "job 1.5": (lambda client, _: client.job(1.5), "reference=1.5 is not a whole number from 1"),
    "job True": (lambda client, _: client.job(True), "reference=True is not a whole number"),
    "job 0": (lambda client, _: client.job(0), "reference=0 is not"),
    "job list": (lambda client, _: client.job([1]), r"reference=\[1\] is not"),
    "filter": (lambda client, _: client.jobs(5), "filter=5 is not a string"),
    "sort": (lambda client, _: client.jobs(sort=["name"]), r"sort=\['name'\] is not a string"),
    "limit text": (lambda client, _: client.jobs(limit="3"), "limit='3' is not a whole number from 0"),
    "limit -1": (lambda client, _: client.jobs(limit=-1), "limit=-1 is not a whole number from 0"),
    "names 5": (lambda client, job: client.job(job).metrics(5), "names=5 is neither a name nor a list of names"),
    "names [5]": (lambda client, job: client.job(job).metrics([5]), "names has 5, which is not a string"),
    "names bytes": (lambda client, job: client.job(job).metrics(b"a"), "names=b'a' is neither"),
    "log_type": (lambda client, job: client.job(job).logs(log_type="out"), "'out' is not one of stdout, stderr"),
    "level": (lambda client, job: client.job(job).logs(level=30), "level=30 is not a string"),
    "rank": (lambda client, job: client.job(job).logs(rank="0"), "rank='0' is not a whole number from 0"),
    "attempt": (lambda client, job: client.job(job).logs(attempt=2**31), "attempt=2147483648 is not"),
    "search": (lambda client, job: client.job(job).logs(search=5), "search=5 is not a string"),
    "after": (lambda client, job: client.job(job).logs(after=-1), "after=-1 is not"),
    "which": (lambda client, job: client.job(job).download(1.5), "1.5 is no checkpoint"),
    "which None": (lambda client, job: client.job(job).download(None), "None is no checkpoint"),
    "which 2**70": (lambda client, job: client.job(job).download(2**70), "is no checkpoint: write 'best', 'last'"),
    "to": (lambda client, job: client.job(job).download(to=5), "to=5 is not a path"),
    "to bytes": (lambda client, job: client.job(job).download(to=b"a"), "to=b'a' is not a path"),
    "to NUL": (lambda client, job: client.job(job).download(to="a\0"), "is not a path"),
    "url": (lambda *_: Client(5), "url=5 is not a string"),  # type: ignore[arg-type]
    "token": (lambda *_: Client("http://h", token=b"t"), "token=b't' is not a string"),  # type: ignore[arg-type]
    "database_url": (lambda *_: Client(database_url=5), "database_url=5 is not"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named(reader: Client, job: int, name: str) -> None:
    """The call raises at once, with the argument, its value and the allowed ones."""
    call, sentence = WRONG_ARGUMENTS[name]
    with pytest.raises(ClientError, match=sentence):
        call(reader, job)


def test_a_wrong_address_of_the_gateway_is_named(gateway: GatewayServer) -> None:
    """The remedy for a path that the gateway does not have is the address, and not an upgrade."""
    client = Client(f"{gateway.url}/wrong")
    calls: list[Callable[[], Any]] = [
        lambda: client.job("digits"),
        lambda: client.job(1),
        lambda: [*client.jobs()],
    ]
    for call in calls:
        with pytest.raises(ClientError, match=r"answers 404 .*give the address of the gateway itself") as error:
            call()
        assert "upgrade" not in str(error.value)


def test_a_metric_is_found_under_the_name_that_it_was_logged_with(
    reader: Client, sender: Sender, resources: Resources
) -> None:
    """`acc` and `lr` are stored as `accuracy` and `learning_rate`."""
    number = next(_jobs)
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={"acc": 0.5, "lr": 0.1})]), job=number)
    drain(resources, "metrics", number)
    found = reader.job(number).metrics(["acc"])
    assert (list(found), list(found["acc"].value)) == (["accuracy"], [0.5])
    assert list(reader.job(number).metrics()["lr"].value) == [0.1]


def test_frames(reader: Client, job: int) -> None:
    """pandas and Arrow have the same rows; Arrow distinguishes NaN from a missing value."""
    found = reader.job(job).metrics()
    frame = found.to_pandas()
    assert list(frame["loss"].isna()) == [False, True, True, False]
    assert frame["step"].isna().tolist() == [False, True, False, False]
    assert (str(frame["step"].dtype), str(frame["seq"].dtype)) == ("Int64", "int64")
    table = found.to_arrow()
    assert table["loss"].null_count == 1
    assert table["val/loss"].null_count == 2
    assert table["seq"].to_pylist() == [1, 2, 3, 4]


def test_many_rows_are_neither_cut_nor_sampled(reader: Client, resources: Resources) -> None:
    """Over several blocks every row comes once and in order, also where a later block lacks a metric."""
    number, rows = next(_jobs), 120_001
    with resources.engine.begin() as connection:
        connection.execute(insert(training_jobs).values(id=number, status="running", last_metric_seq=rows))
        connection.execute(
            text(
                "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, loss, extra_metrics) "
                "SELECT :job_id, seq, now(), 1, 's', seq / 2.0, "
                "CASE WHEN seq < 10 OR seq = :rows THEN jsonb_build_object('x', seq) END "
                "FROM generate_series(1, :rows) AS seq"
            ),
            {"job_id": number, "rows": rows},
        )
    found = reader.job(number).metrics()
    assert list(found["loss"].seq) == list(range(1, rows + 1))
    assert list(found["loss"].value) == [seq / 2 for seq in range(1, rows + 1)]
    assert list(found["x"].seq) == [*range(1, 10), rows]
    assert found["x"].value[-1] == rows


def test_jobs_are_filtered_and_sorted(reader: Client, sender: Sender, resources: Resources) -> None:
    """The filter language and the order are those of the page; `limit` is the most, and pages are not seen."""
    numbers = [next(_jobs) for _ in range(3)]
    for place, number in enumerate(numbers):
        sender.send(Metrics(name="tuned", params={"lr": place / 10}), job=number)
        drain(resources, "metrics", number)
    found = list(reader.jobs("params.lr >= 0.1", sort="params.lr"))
    assert [found_job.id for found_job in found] == numbers[1:]
    assert [found_job.id for found_job in reader.jobs(limit=2)] == numbers[:0:-1]
    with pytest.raises(ClientError, match="unknown field `statu`"):
        list(reader.jobs("statu = failed"))


def test_pages_of_jobs_are_one_list(reader: Client, resources: Resources) -> None:
    """More jobs than a page has are all yielded, each once."""
    with resources.engine.begin() as connection:
        connection.execute(
            insert(training_jobs), [{"id": number, "status": "running"} for number in range(1, 452)]
        )
    assert sorted(found.id for found in reader.jobs()) == list(range(1, 452))
    assert len(list(reader.jobs(limit=201))) == 201


def test_a_job_by_number_name_beginning_and_last(reader: Client, job: int) -> None:
    """The look-up of the commands; the state has floats, parameters and counts of rows."""
    for reference in (job, str(job), f"digits-{job}", "digits", "last"):
        assert reader.job(reference).id == job
    info = reader.job(job).info
    assert (info.status, info.exit_code, info.error_message) == ("failed", 1, "boom")
    assert (info.params, info.tags) == ({"lr": 0.1}, {"kind": "test"})
    assert info.rows == {"logs": 3, "metrics": 4, "checkpoints": 0}


def test_an_unknown_job_is_an_error_with_a_remedy(
    reader: Client, job: int, sender: Sender, resources: Resources
) -> None:
    """A number or name of no job, and a beginning of two, which lists both."""
    other = next(_jobs)
    sender.send(Metrics(name=f"digits-{other}"), job=other)
    drain(resources, "metrics", other)
    with pytest.raises(JobNotFound, match="no job 99 in the database"):
        reader.job(99)
    with pytest.raises(JobNotFound, match="'nothing' is not in the database"):
        reader.job("nothing")
    with pytest.raises(JobNotFound, match="name is empty"):
        reader.job(" ")
    with pytest.raises(JobNotFound, match="2 jobs fit 'digits'") as caught:
        reader.job("digits")
    assert str(job) in str(caught.value)
    assert str(other) in str(caught.value)


def test_a_reference_that_is_also_a_name_is_a_warning(reader: Client, resources: Resources) -> None:
    """`last` and a number take precedence over a name, as on the command line; the warning has the other job."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    names = {5: "last", 6: "5", 7: "newest"}
    rows = [
        {"id": job, "name": name, "status": "running", "created_at": at + timedelta(seconds=job)}
        for job, name in names.items()
    ]
    with resources.engine.begin() as connection:
        connection.execute(insert(training_jobs), rows)
    for reference, job, other in (("5", 5, 6), ("last", 7, 5)):
        with pytest.warns(UserWarning, match=f"^{reference} is job {job}, and also the name of job {other}: use"):
            assert reader.job(reference).id == job
    assert reader.job("newest").id == 7
    assert reader.job(5).id == 5


def test_the_log_is_whole(reader: Client, job: int, sender: Sender, resources: Resources) -> None:
    """More lines than a page has, and a line longer than the gateway shows on a page of many."""
    long = "x" * 70_000 + "end"
    sender.send(
        logs(long, *(f"line {number}" for number in range(6000)), ts=NOW_NS + 10**9), job=job, source="2-t"
    )
    drain(resources, "logs", job)
    found = list(reader.job(job).logs())
    assert [line.seq for line in found] == list(range(1, 6005))
    assert found[3].text == long
    assert found[-1].text == "line 5999"
    assert [line.text for line in reader.job(job).logs(search="error")] == ["two ERROR"]
    assert [line.seq for line in reader.job(job).logs(after=6002)] == [6003, 6004]


def test_pages_of_the_log_in_both_directions(reader: Client, job: int) -> None:
    """`next` of a page is where the next one begins; a time has the line that follows it."""
    found = reader.job(job)
    newest = found.log_page(limit=2)
    assert ([line.text for line in newest.lines], newest.next) == (["two ERROR", "three"], 2)
    assert [line.text for line in found.log_page(before=newest.next, limit=2).lines] == ["one"]
    first = found.log_page(after=0, limit=1)
    assert ([line.text for line in first.lines], first.next) == (["one"], 1)
    assert [line.seq for line in found.log_page(after=1, search="THREE").lines] == [3]
    assert found.log_page(after=3).next is None
    with pytest.raises(ClientError, match="after=1 and before=2"):
        found.log_page(after=1, before=2)
    at = to_datetime(newest.lines[0].ts)
    assert [found.seq_at(at), found.seq_at(at.replace(tzinfo=None)), found.seq_at(at + timedelta(days=1))] == [
        2,
        2,
        None,
    ]


def test_the_parts_of_a_failed_job(
    reader: Client, sender: Sender, resources: Resources, database_url: str, job: int
) -> None:
    """Traceback, newest metrics, names, completeness and provenance are the same over HTTP and from Postgres."""
    sender.send(completion(status="failed", traceback="Traceback ...\nKeyError: 'x'"), job=job, source="1-test")
    drain(resources, "completions", job)
    found = reader.job(job)
    assert found.info.traceback == "TRACEBACK:\nTraceback ...\nKeyError: 'x'"
    assert found.info.last_metrics["grad"] == math.inf
    assert found.metric_names() == (["grad", "loss", "step", "val/loss"], True)
    assert found.completeness().line.startswith("unproven: 6 messages produced = 6 stored")
    with resources.engine.begin() as connection:
        connection.execute(update(training_attempts).values(provenance={"command": "python train.py"}))
    assert found.provenance() == found.provenance(1) == {"command": "python train.py"}
    assert found.provenance(2) == {}
    with Client(database_url=database_url) as other:
        assert other.job(job).info == found.info


def test_a_page_of_jobs_with_columns(reader: Client, resources: Resources) -> None:
    """A page has a cursor for the next, the number of matching jobs, and the values of fields."""
    rows = [{"id": number, "status": "failed", "params": {"lr": number / 4}} for number in (1, 2, 3)]
    with resources.engine.begin() as connection:
        connection.execute(insert(training_jobs), rows)
    first = reader.job_page("status = failed", sort="-params.lr", columns=["params.lr"], limit=2)
    assert [(found.id, found.info.columns) for found in first.jobs] == [
        (3, {"params.lr": 0.75}),
        (2, {"params.lr": 0.5}),
    ]
    assert first.total == 3
    rest = reader.job_page("status = failed", sort="-params.lr", limit=2, cursor=first.next)
    assert ([found.id for found in rest.jobs], rest.next, rest.total) == ([1], None, None)
    for cursor, sort in ((first.next, "params.lr"), ("x", None), ("[]", None)):
        with pytest.raises(ClientError, match="cursor="):
            reader.job_page(sort=sort, cursor=cursor)
    assert reader.fields()["params"] == ["lr"]
    assert {"status", "project"} <= set(reader.fields()["jobs"])


def test_checkpoints_and_a_download(
    reader: Client, sender: Sender, resources: Resources, lending: Bucket, tmp_path: Path
) -> None:
    """All checkpoints with the state of their files; the best one is downloaded and checked."""
    number = next(_jobs)
    sender.send(checkpoint(**lending.put("checkpoints/best.pt", b"weights"), metrics={"loss": 0.5}), job=number)
    wrong = lending.put("checkpoints/last.pt", b"other") | {"sha256": hashlib.sha256(b"no").hexdigest()}
    sender.send(checkpoint(kind="last", **wrong), job=number)
    drain(resources, "checkpoints", number)
    found = reader.job(number)
    assert [(each.seq, each.checkpoint_kind, each.is_best, each.is_last) for each in found.checkpoints()] == [
        (1, "best", True, False),
        (2, "last", False, True),
    ]
    assert found.checkpoints()[0].metrics == {"loss": 0.5}
    path = found.download("best", to=tmp_path)
    assert (path.name, path.read_bytes()) == ("best.pt", b"weights")
    with pytest.raises(ClientError, match="exists already"):
        found.download(1, to=path)
    with pytest.raises(ClientError, match="not what the trainer uploaded"):
        found.download("last", to=tmp_path)
    with pytest.raises(ClientError, match="no checkpoint 9: its newest are 1, 2"):
        found.download(9)
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".pt"] == ["best.pt"]


@pytest.fixture
def lending(gateway: GatewayServer, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket whose files the gateway serves."""
    settings = gateway.settings.model_copy(update={"trainwire_checkpoint_bucket": bucket.name})
    monkeypatch.setattr(gateway.app.state.resources, "settings", settings)
    gateway.app.state.resources.__dict__.pop("s3", None)
    return bucket


def test_more_checkpoints_than_a_page_has(reader: Client, sender: Sender, resources: Resources) -> None:
    """All 1,003 are returned."""
    number = next(_jobs)
    for place in range(1003):
        sender.send(checkpoint(f"s3://bucket/{place}.pt", kind="epoch", epoch=place), job=number)
    drain(resources, "checkpoints", number)
    assert [each.epoch for each in reader.job(number).checkpoints()] == list(range(1003))


def test_following_ends_with_the_job(gateway: GatewayServer, job: int, database_url: str) -> None:
    """Of an ended job the snapshot is the only event; Postgres has no live feed, an error with a remedy."""
    assert [event["type"] for event in Client(gateway.url).job(job).follow()] == ["snapshot"]
    with Client(database_url=database_url) as client, pytest.raises(ClientError, match="set TRAINWIRE_URL"):
        next(client.job(job).follow())


def test_new_rows_are_followed_until_the_end(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """Events come live and end with the job, also where it ended while the gateway restarted."""
    trainer.send(logs("first"))
    events = Client(feed_gateway.url).job(trainer.job_id).follow()
    first = next(events)
    assert (first["type"], [line["text"] for line in first["logs"]]) == ("snapshot", ["first"])
    trainer.send(logs("second"))
    assert [line["text"] for line in next(events)["lines"]] == ["second"]
    feed_gateway.restart()
    trainer.send(logs("third"))
    trainer.send(completion())
    rest = list(events)
    assert [line["text"] for event in rest for line in event.get("lines") or ()] == ["third"]
    again = Client(feed_gateway.url).job(trainer.job_id)
    assert again.status == "completed"
    assert [event["type"] for event in again.follow()] == ["snapshot"]


def test_lines_stored_after_the_completion_are_followed(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """A completion can be stored before the last lines, because each kind of message has a stream of its own."""
    trainer.send(logs("first"))
    events = Client(feed_gateway.url).job(trainer.job_id).follow()
    assert next(events)["type"] == "snapshot"
    trainer.send(completion(produced={"logs": 2, "completions": 1}))
    assert next(events)["type"] == "training_complete"
    timer = threading.Timer(0.5, trainer.send, [logs("last")])
    timer.start()
    assert [line["text"] for event in events for line in event.get("lines") or ()] == ["last"]
    timer.join()


def test_a_token_is_needed_where_the_gateway_requires_one(
    guarded: GatewayServer, resources: Resources, job: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing and wrong tokens are named with the variable to set; that of the environment is used."""
    with pytest.raises(ClientError, match=r"is missing.*TRAINWIRE_TOKEN"):
        Client(guarded.url).job(job)
    with pytest.raises(ClientError, match="is wrong, expired or revoked"):
        Client(guarded.url, token="tw_wrong").job(job)
    with resources.engine.begin() as connection:
        monkeypatch.setenv("TRAINWIRE_TOKEN", create_token(connection, "reader", "viewer", None)[1])
    assert Client(guarded.url).job(job).metrics("loss")["loss"].value[0] == 1.0


def test_no_server_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing named and nothing running, an address of nobody, a wrong address, and two addresses."""
    with pytest.raises(ClientError, match=r"no trainwire is running: start `trainwire up`.*TRAINWIRE_URL"):
        Client()
    with pytest.raises(ClientError, match=r"no gateway answers at http://127\.0\.0\.1:1 "):
        Client("http://127.0.0.1:1").job(1)
    with pytest.raises(ClientError, match="url='ftp://host' is not the address of a gateway"):
        Client("ftp://host")
    with pytest.raises(ClientError, match="both url and database_url"):
        Client("http://host", database_url="postgresql://host/db")
    with pytest.raises(ClientError, match="url='http://host:x' has the port 'x'"):
        Client("http://host:x")
    with pytest.raises(ClientError, match=r"ssl_ca_certs='/no/ca\.pem' .*cannot be read"):
        Client("https://host/?ssl_ca_certs=/no/ca.pem")
    monkeypatch.setenv("TRAINWIRE_URL", "127.0.0.1:8800")
    with pytest.raises(ClientError, match=r"127\.0\.0\.1:8800"):
        Client()


@pytest.mark.parametrize("token", ["tw_secret\nx", "tw_secret x", "tw_secret\u00e9"])
def test_an_invalid_token_is_an_error_without_its_text(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """As for trainers; white space around a token is no part of it."""
    with pytest.raises(ClientError, match="TRAINWIRE_TOKEN is no token") as caught:
        Client(gateway.url, token=token)
    monkeypatch.setenv("TRAINWIRE_TOKEN", token)
    with pytest.raises(ClientError, match="TRAINWIRE_TOKEN is no token"):
        Client(gateway.url)
    assert "secret" not in str(caught.value)
    assert list(Client(gateway.url, token="tw_secret\n").jobs()) == []


def test_a_password_in_an_address_is_not_shown() -> None:
    """An address with a user is refused, as for trainers."""
    with pytest.raises(ClientError, match="url='http://host' has a user or a password") as caught:
        Client("http://me:secret@host")
    assert "secret" not in str(caught.value)


def test_a_gateway_with_a_private_ca(gateway: GatewayServer, tls: Tls, job: int) -> None:
    """The address is that of trainers, with the file of the CA."""
    url = f"https://localhost:{tls.in_front_of(gateway.url).port}"
    assert Client(f"{url}/?ssl_ca_certs={tls.ca}").job(job).id == job
    with pytest.raises(GatewayUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        Client(f"{url}?ssl_ca_certs={tls.stranger}").job(job)


def test_a_character_that_is_no_text_is_an_error(reader: Client, job: int) -> None:
    """Half of a surrogate pair, in a reference, a filter or a condition."""
    for read in (
        lambda: reader.job("\ud800"),
        lambda: list(reader.jobs("name = \ud800")),
        lambda: list(reader.job(job).logs(search="\ud800")),
        lambda: reader.job(job).metrics("\ud800"),
    ):
        with pytest.raises(ClientError, match=r"'.*\\ud800'"):
            read()


class _OlderGateway(BaseHTTPRequestHandler):
    """Knows job 1 in a form of another version, and no other route."""

    def do_GET(self) -> None:
        documents = {"/openapi.json": {"info": {"version": "0.0.9"}}, "/jobs/1": {"id": 1, "status": "running"}}
        found = documents.get(self.path)
        absent = {"type": "urn:trainwire:problem:not-found", "detail": "no such address"}
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(found or absent).encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_gateway_of_another_version_is_named() -> None:
    """Without the routes of this client, or with other fields, the message has both versions."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _OlderGateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            client = Client(f"http://127.0.0.1:{server.server_port}")
            ours = importlib.metadata.version("trainwire")
            both = re.escape(f"the gateway is 0.0.9 and this client {ours}: upgrade the older one")
            with pytest.raises(ClientError, match=f"/jobs/resolve answers 404 .*{both}"):
                client.job("digits")
            with pytest.raises(ClientError, match=f"in another form .*{both}"):
                client.job(1)
        finally:
            server.shutdown()
            thread.join()


class _Elsewhere(BaseHTTPRequestHandler):
    """Redirects each request to another host name, and records the hosts that were called."""

    hosts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.hosts.append(str(self.headers["Host"]))
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.hosts[-1].partition(':')[2]}{self.path}")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_token_does_not_follow_a_redirect_to_another_host() -> None:
    """The other address is named, and receives no request."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"127.0.0.1:{server.server_port}"
            with pytest.raises(ClientError, match=r"redirects to http://localhost:.* the token is not sent"):
                Client(f"http://{address}", token="tw_secret").job(1)
            assert _Elsewhere.hosts == [address]
        finally:
            server.shutdown()
            thread.join()


def test_rows_that_retention_removed_are_skipped(reader: Client, job: int, resources: Resources) -> None:
    """The rest comes without an error."""
    with resources.engine.begin() as connection:
        connection.execute(
            training_metrics.delete().where(training_metrics.c.job_id == job, training_metrics.c.seq < 3)
        )
        connection.execute(update(training_jobs).where(training_jobs.c.id == job).values(removed_metric_seq=2))
    assert list(reader.job(job).metrics()["loss"].seq) == [3, 4]


def test_the_class_is_public() -> None:
    """`from trainwire import Client` is the name, and it is documented."""
    assert trainwire.Client is Client
    assert "gateway" in (Client.__doc__ or "")


def test_a_running_job_is_asked_to_stop(reader: Client, sender: Sender, resources: Resources) -> None:
    """Both ways store the request once; a job that has ended, and an unknown one, are errors."""
    number = next(_jobs)
    sender.send(Metrics(name="running"), job=number)
    drain(resources, "metrics", job=number)
    request = reader.job(number).stop("loss is NaN", by="anna")
    assert (request.attempt, request.requested_by, request.reason) == (1, "anna", "loss is NaN")
    assert reader.job(number).stop(by="bert") == request
    assert (reader.job(number).info.stop or {})["requested_by"] == "anna"
    sender.send(completion(stopped=True), job=number)
    drain(resources, "completions", job=number)
    assert reader.job(number).status == "stopped"
    with pytest.raises(ClientError, match=rf"job {number} has ended \(stopped\)"):
        reader.job(number).stop()
