"""Jobs over HTTP: the list and its pages, one job, its completeness, its deliveries, comparisons."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs, metrics
from tests.gateway_server import GatewayServer
from trainwire.gateway.documents.job_types import JobDetail, JobPage
from trainwire.gateway.documents.response_types import CompletenessReport
from trainwire.gateway.routes import comparison_routes
from trainwire.schemas.keys import KINDS
from trainwire.schemas.wire.messages import Logs, Metrics, Point, Progress
from trainwire.stores.rows.metric_names import MetricNames
from trainwire.workers.resources import Resources

_jobs = count(5_000)


@pytest.fixture
def job() -> int:
    """The number of a job that no other test has."""
    return next(_jobs)


def drain_all(resources: Resources, *jobs: int) -> None:
    """Store all messages of these jobs."""
    for job in jobs:
        for kind in KINDS:
            drain(resources, kind, job)


def insert_jobs(resources: Resources, number: int, **columns: Any) -> None:
    """Make jobs 1 to `number`, two of them in every second."""
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", :{name}" for name in columns)
    with resources.engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO training_jobs (id, created_at{names}) SELECT n, "
                f"timestamptz '2026-01-01' + (n / 2) * interval '1 s'{values} FROM generate_series(1, :number) n"
            ),
            columns | {"number": number},
        )


def test_a_job_is_shown_with_all_its_messages(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """The document of a job has parameters, attempts, names and newest values of metrics, and rows by kind."""
    point = Point(ts=NOW_NS, epoch=2, step=7, values={"loss": 0.0, "f1": float("nan"), "lr": 0.0})
    sent = Metrics(
        points=[Point(ts=NOW_NS, values={"loss": 0.5}), point],
        progress=Progress(current_epoch=0, total_epochs=8),
        name="digits <b>",
        params={"lr": 0.0},
    )
    sender.send(sent, job=job)
    sender.send(logs("one", "two"), job=job)
    sender.send(checkpoint("s3://b/best.pt"), job=job)
    drain_all(resources, job)
    shown = gateway.get(f"/jobs/{job}")
    assert msgspec.convert(shown, JobDetail, strict=True).id == job
    assert (shown["name"], shown["status"], shown["params"]) == ("digits <b>", "running", {"lr": 0.0})
    assert (shown["current_epoch"], shown["total_epochs"], shown["progress_percent"]) == (0, 8, 0.0)
    assert shown["last_metrics"] == {"loss": 0.0, "f1": "NaN", "learning_rate": 0.0}
    assert shown["metric_names"] == ["f1", "learning_rate", "loss"]
    assert shown["sparkline"] == {"name": "loss", "values": [0.5, 0.0]}
    assert shown["rows"] == {"logs": 2, "metrics": 2, "checkpoints": 1}
    assert [(each["attempt"], each["status"]) for each in shown["attempts"]] == [(1, "running")]
    assert shown["best_checkpoint_path"] == "s3://b/best.pt"
    assert shown["traceback"] is None


def test_a_failed_job_has_its_traceback(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """A failed job has the traceback of its newest attempt, unchanged."""
    failed = completion("failed", exit_code=1, error_message="ValueError: no", traceback="File 1\nValueError: no")
    sender.send(failed, job=job)
    drain_all(resources, job)
    shown = gateway.get(f"/jobs/{job}")
    assert (shown["status"], shown["exit_code"], shown["error_message"]) == ("failed", 1, "ValueError: no")
    assert shown["traceback"] == "TRACEBACK:\nFile 1\nValueError: no"


def test_a_failed_command_has_the_traceback_that_it_printed(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """Without a traceback in the completion, the job has the last one of its output, with its causes."""
    cause = ("Traceback (most recent call last):", "  File 1", "KeyError: 1", "")
    between = ("During handling of the above exception, another exception occurred:", "")
    last = ("Traceback (most recent call last):", "  File 2", "    load()", "ValueError: no")
    sender.send(logs("Traceback (most recent call last):", "  File 0", "OSError"), job=job)
    sender.send(logs(*cause, *between, *last, "after"), job=job)
    sender.send(Logs(log_type="stderr", lines=["  other output"], ts=[NOW_NS]), job=job)
    sender.send(completion("failed", exit_code=1), job=job)
    drain_all(resources, job)
    assert gateway.get(f"/jobs/{job}")["traceback"] == "\n".join((*cause, *between, *last))


def test_new_metric_names_are_found(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """Names in new rows are added to the list."""
    sender.send(metrics(loss=1.0), job=job)
    drain_all(resources, job)
    assert gateway.get(f"/jobs/{job}")["metric_names"] == ["loss"]
    sender.send(metrics(f1=1.0), job=job)
    drain_all(resources, job)
    assert gateway.get(f"/jobs/{job}")["metric_names"] == ["f1", "loss"]


def insert_names(resources: Resources, job: int, rows: int, named: str) -> None:
    """Store a job with so many rows of metrics, their values by an SQL expression of the row's number n."""
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO training_jobs (id, last_metric_seq) VALUES (:job, :n)"), {"job": job, "n": rows}
        )
        insert = (
            "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, extra_metrics) "
            f"SELECT :job, n, now(), 1, 's', {named} FROM generate_series(1, :n) AS n"
        )
        connection.execute(text(insert), {"job": job, "n": rows})


def test_thousands_of_metric_names_are_all_listed(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """The document of a job has at most 5,000 names and a flag if there are more; the pages have all."""
    insert_names(resources, job, 3000, "jsonb_build_object('m' || lpad(CAST(n AS text), 5, '0'), 1)")
    shown = gateway.get(f"/jobs/{job}")
    assert shown["metric_names"] == [f"m{n:05}" for n in range(1, 3001)]
    assert shown["metric_names_complete"]
    other = job + 100_000
    insert_names(resources, other, 7000, "jsonb_build_object('m' || lpad(CAST(n AS text), 5, '0'), 1)")
    shown = gateway.get(f"/jobs/{other}")
    assert (len(shown["metric_names"]), shown["metric_names_complete"]) == (5000, False)
    names: list[str] = []
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        page = gateway.get(f"/jobs/{other}/metrics/names", params={"after": page["next"], "limit": 999})
        names += page["items"]
    assert names == [f"m{n:05}" for n in range(1, 7001)]
    assert page["complete"]


def test_names_of_old_rows_are_found_in_bounded_steps(resources: Resources, job: int) -> None:
    """A name in the first of 50,000 rows is found over several requests; new rows are read before older ones."""
    insert_names(resources, job, 50_000, "jsonb_build_object(CASE n WHEN 1 THEN 'first' ELSE 'm' END, 1)")
    ticks = iter(range(1000))
    names = MetricNames(clock=lambda: float(next(ticks)))
    with resources.engine.connect() as connection:
        known = names.of(connection, job, 49_000)
        assert (known.names, known.is_complete(49_000)) == (frozenset({"m"}), False)
        connection.execute(text("UPDATE training_metrics SET extra_metrics = '{\"last\": 1}' WHERE seq = 50000"))
        assert names.of(connection, job, 50_000).names == {"m", "last"}
        asked = 2
        while not known.is_complete(50_000):
            known, asked = names.of(connection, job, 50_000), asked + 1
    assert known.names == {"first", "last", "m"}
    assert asked <= 5


def test_the_pages_of_the_list_join(gateway: GatewayServer, resources: Resources) -> None:
    """Over all pages every job is listed once, newest first, also if several began at the same moment."""
    insert_jobs(resources, 25)
    seen: list[int] = []
    cursor: str | None = None
    while True:
        page = gateway.get("/jobs", params={"limit": 4} | ({"cursor": cursor} if cursor else {}))
        msgspec.convert(page, JobPage, strict=True)
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == list(range(25, 0, -1))


def test_the_list_is_filtered(gateway: GatewayServer, resources: Resources) -> None:
    """Jobs are filtered by statuses and by a part of the name, ignoring case; SQL wildcards are literal."""
    insert_jobs(resources, 2, name="100% Digits_a", status="running")
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = 'failed', name = 'other' WHERE id = 2"))

    def found(**parameters: Any) -> list[int]:
        return [item["id"] for item in gateway.get("/jobs", params=parameters)["items"]]

    assert found(status="running") == [1]
    assert found(status=["running", "failed"]) == [2, 1]
    assert found(name="digits") == [1]
    assert found(name="%") == [1]
    assert found(name="digits%a") == []


def test_completeness_is_returned(gateway: GatewayServer, resources: Resources, sender: Sender, job: int) -> None:
    """Completeness has the counts, a summary, and the gaps by number."""
    sender.send(logs("a"), job=job, seq=1)
    sender.send(logs("c"), job=job, seq=4)
    drain_all(resources, job)
    answered = gateway.get(f"/jobs/{job}/completeness")
    assert msgspec.convert(answered, CompletenessReport, strict=True).state == "open"
    assert (answered["produced"], answered["stored"], answered["missing"]) == (4, 2, 2)
    assert answered["gaps"] == [{"source": "0-test", "kind": "logs", "ranges": [[2, 3]]}]
    sender.send(completion(produced={"logs": 4, "completions": 1}), job=job)
    drain_all(resources, job)
    assert gateway.get(f"/jobs/{job}/completeness")["state"] == "incomplete"


def test_deliveries_have_their_error_and_lag(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """An unavailable sink has its error and the number of rows behind."""
    sender.send(logs("a", "b"), job=job)
    drain_all(resources, job)
    assert gateway.get(f"/jobs/{job}/deliveries") == {"items": []}
    with resources.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sink_states (sink, attempts, down_since, next_probe_at, last_error) VALUES "
                "('loki', 3, now(), now() + interval '1 hour', 'Loki answered 503')"
            )
        )
    (item,) = gateway.get(f"/jobs/{job}/deliveries")["items"]
    assert (item["sink"], item["behind_rows"], item["is_down"]) == ("loki", 2, True)
    assert item["words"].startswith("2 lines behind; Loki answered 503, since ")
    assert item["words"].endswith(" UTC")


def test_jobs_are_compared(gateway: GatewayServer, resources: Resources, sender: Sender) -> None:
    """Several jobs come with the series that all of them have, each of its newest attempt."""
    one, two = next(_jobs), next(_jobs)
    sender.send(metrics(loss=9.0), job=one, source="old", attempt=1)
    sender.send(metrics(loss=1.0, f1=1.0), job=one, source="new", attempt=2)
    sender.send(metrics(loss=2.0), job=two)
    drain_all(resources, one, two)
    found = gateway.get("/jobs/compare", params={"ids": f"{one},{two}"})
    assert [item["id"] for item in found["jobs"]] == [one, two]
    answered = [(each["job_id"], each["name"], each["attempt"], each["points"][0][2]) for each in found["series"]]
    assert answered == [(one, "loss", 2, 1.0), (two, "loss", 1, 2.0)]
    assert gateway.get("/jobs/compare", params={"ids": "1,999999"}, status=404)["detail"].startswith("no job ")


def test_a_comparison_tells_ranks_apart(gateway: GatewayServer, resources: Resources, sender: Sender) -> None:
    """Each rank is a series of its own, also in the document of the job, whose sparkline has the values of one."""
    job = next(_jobs)
    for rank in range(4):
        points = [Point(ts=NOW_NS, values={"loss": 1.0 + rank})]
        sender.send(Metrics(points=points, rank=rank), job=job, source=f"{rank}-abc")
    drain_all(resources, job)
    found = gateway.get("/jobs/compare", params={"ids": job})
    answered = [(each["rank"], each["points"][0][2]) for each in found["series"]]
    assert answered == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]
    assert gateway.get(f"/jobs/{job}")["last_by_rank"]["loss"] == {"0": 1.0, "1": 2.0, "2": 3.0, "3": 4.0}
    assert gateway.get(f"/jobs/{job}")["sparkline"] == {"name": "loss", "values": [1.0]}


def test_a_sparkline_of_many_ranks_is_as_long_as_of_one(
    gateway: GatewayServer, resources: Resources, sender: Sender
) -> None:
    """The rows of 16 ranks are mixed; the line has 40 values, all of one rank."""
    job = next(_jobs)
    for step in range(50):
        for rank in range(16):
            points = [Point(ts=NOW_NS, step=step, values={"loss": 100.0 * rank + step})]
            sender.send(Metrics(points=points, rank=rank), job=job, source=f"{rank}-abc")
    drain_all(resources, job)
    values = gateway.get(f"/jobs/{job}")["sparkline"]["values"]
    assert len(values) == 40
    assert len({value // 100 for value in values}) == 1
    assert values == sorted(values)


def test_a_comparison_has_all_shared_metrics(gateway: GatewayServer, resources: Resources, sender: Sender) -> None:
    """Shared metrics come in pages of 50, none twice; a name may contain a comma."""
    one, two = next(_jobs), next(_jobs)
    names = sorted([f"m/{number:03}" for number in range(119)] + ["a,b"])
    for job in (one, two):
        values = dict.fromkeys([*names, f"own {job}"], 1.0)
        sender.send(Metrics(points=[Point(ts=NOW_NS, values=values)]), job=job)
    drain_all(resources, one, two)
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = gateway.get("/jobs/compare", params={"ids": f"{one},{two}", "after": after})
        found += [each["name"] for each in page["series"] if each["job_id"] == two]
        after = page["next"]
        assert page["complete"]
    assert found == names
    chosen = gateway.get(f"/jobs/{one}/metrics", params={"names": "a\\,b,m/000"})
    assert [each["name"] for each in chosen["series"]] == ["a,b", "m/000"]


def test_jobs_that_share_no_metric_are_compared(
    gateway: GatewayServer, resources: Resources, sender: Sender
) -> None:
    """Jobs without a common metric are returned without series."""
    one, two = next(_jobs), next(_jobs)
    for job, name in ((one, "loss"), (two, "accuracy")):
        sender.send(Metrics(points=[Point(ts=NOW_NS, values={name: 1.0})] * 5), job=job)
    drain_all(resources, one, two)
    found = gateway.get("/jobs/compare", params={"ids": f"{one},{two}", "points": 4})
    assert ([item["id"] for item in found["jobs"]], found["series"]) == ([one, two], [])


def test_a_comparison_is_bounded(
    gateway: GatewayServer, resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of points is for all jobs of a comparison together."""
    monkeypatch.setattr(comparison_routes, "MOST_POINTS", 40)
    jobs = [next(_jobs) for _ in range(4)]
    for job in jobs:
        points = [Point(ts=NOW_NS, values={"loss": float(number)}) for number in range(100)]
        sender.send(Metrics(points=points), job=job)
    drain_all(resources, *jobs)
    found = gateway.get("/jobs/compare", params={"ids": ",".join(map(str, jobs)), "points": 5000})
    assert [each["job_id"] for each in found["series"]] == jobs
    assert sum(len(each["points"]) for each in found["series"]) <= 40


@pytest.mark.parametrize("path", ["", "/logs", "/metrics", "/checkpoints", "/completeness", "/deliveries"])
def test_an_unknown_job_is_named(gateway: GatewayServer, path: str) -> None:
    """Requests for an unknown job get 404 with its number."""
    answer = gateway.request("GET", f"/jobs/424242{path}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json() == {
        "type": "urn:trainwire:problem:unknown-job",
        "title": "Job not found",
        "status": 404,
        "detail": "no job 424242 in the database: check the number (GET /jobs lists all)",
        "instance": f"/jobs/424242{path}",
    }


def test_large_results_are_bounded(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A list shows 20 names of each map of results, a job 1,000 and whether these are all."""
    insert_names(resources, job, 1, "NULL")
    name = "'m' || lpad(CAST(n AS text), 5, '0')"
    values = f"SELECT jsonb_object_agg({name}, n) FROM generate_series(1, {{}}) AS n"
    set_results = text(
        f"UPDATE training_jobs SET final_metrics = ({values.format(1000)}), "
        f"best_metrics = ({values.format(10_000)}) WHERE id = :job"
    )
    with resources.engine.begin() as connection:
        connection.execute(set_results, {"job": job})
    (listed,) = [item for item in gateway.get("/jobs?limit=200")["items"] if item["id"] == job]
    assert listed["final_metrics"] == {f"m{n:05}": n for n in range(1, 21)}
    assert len(listed["best_metrics"] or ()) <= 20
    shown = gateway.get(f"/jobs/{job}")
    assert (len(shown["final_metrics"]), len(shown["best_metrics"])) == (1000, 1000)
    assert not shown["results_complete"]
    with resources.engine.begin() as connection:
        connection.execute(
            text("UPDATE training_jobs SET best_metrics = '{}', final_metrics = NULL WHERE id = :job"),
            {"job": job},
        )
    shown = gateway.get(f"/jobs/{job}")
    assert (shown["final_metrics"], shown["best_metrics"], shown["results_complete"]) == (None, {}, True)


def test_metric_names_are_bounded_in_bytes(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """Names of 1,000 characters fill a megabyte: a job shows so many of them, and the pages have all."""
    insert_names(resources, job, 1500, "jsonb_build_object(lpad(CAST(n AS text), 1000, '0'), 1)")
    shown = gateway.get(f"/jobs/{job}")
    assert (len(shown["metric_names"]), shown["metric_names_complete"]) == (1048, False)
    first = gateway.get(f"/jobs/{job}/metrics/names?limit=10000")
    second = gateway.get(f"/jobs/{job}/metrics/names", params={"limit": 10_000, "after": first["next"]})
    assert (len(first["items"]), len(second["items"]), second["next"]) == (1048, 452, None)


def test_values_of_very_large_rows_are_not_read(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """Lists have the newest values of rows that are small enough, and only the loss of larger ones."""
    many = "SELECT jsonb_object_agg('m' || k, k) FROM generate_series(1, {}) AS k"
    values = f"CASE WHEN n = 1 THEN ({many.format(100_000)}) ELSE jsonb_build_object('f1', n) END"
    insert_names(resources, job, 3, values)
    with resources.engine.begin() as connection:
        connection.execute(
            text("UPDATE training_metrics SET loss = 0.5 WHERE job_id = :job AND seq = 1"), {"job": job}
        )
    (listed,) = [item for item in gateway.get("/jobs?limit=200")["items"] if item["id"] == job]
    assert listed["last_metrics"] == {"loss": 0.5, "f1": 3}
    assert gateway.get(f"/jobs/{job}")["last_metrics"] == {"loss": 0.5, "f1": 3}


def test_a_jobs_provenance_is_shown(
    gateway: GatewayServer, resources: Resources, sender: Sender, job: int
) -> None:
    """Command, code and machine of the newest attempt, or of the one asked for; two names are a warning."""
    sender.send(Metrics(name="digits", provenance={"user": "<b>ada"}), job=job, attempt=1)
    sender.send(Metrics(name="mnist", provenance={"user": "bob"}), job=job, attempt=2, source="0-b")
    drain_all(resources, job)
    path = f"/jobs/{job}/provenance"
    assert gateway.get(path) == {"attempt": 2, "items": {"user": "bob"}}
    assert gateway.get(path, params={"attempt": 1}) == {"attempt": 1, "items": {"user": "<b>ada"}}
    assert gateway.get(path, params={"attempt": 7}) == {"attempt": 7, "items": {}}
    shown = gateway.get(f"/jobs/{job}")
    assert [attempt["name"] for attempt in shown["attempts"]] == ["digits", "mnist"]
    assert "attempt 1 is called 'digits', and attempt 2 'mnist'" in shown["warning"]


def test_a_metric_has_one_name(gateway: GatewayServer, resources: Resources, sender: Sender, job: int) -> None:
    """What a training calls `acc` and `lr` is accuracy and learning rate in points, results and checkpoints."""
    values = {"acc": 0.5, "lr": 0.1, "f1": 0.25}
    stored = {"accuracy": 0.5, "learning_rate": 0.1, "f1": 0.25}
    sender.send(Metrics(points=[Point(ts=NOW_NS, values=values)]), job=job)
    sender.send(checkpoint(metrics=values), job=job)
    sender.send(completion(final_metrics=values, best_metrics=values), job=job)
    drain_all(resources, job)
    found = gateway.get(f"/jobs/{job}")
    assert found["last_metrics"] == found["final_metrics"] == found["best_metrics"] == stored
    assert gateway.get(f"/jobs/{job}/checkpoints")["items"][0]["metrics"] == stored
