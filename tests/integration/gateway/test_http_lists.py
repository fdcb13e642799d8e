"""Lists of jobs over HTTP: filters, sort orders, columns, searches, and jobs that people have changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, completion, drain, metrics
from tests.gateway_server import GatewayServer
from trainwire.gateway.auth.tokens import create_token
from trainwire.gateway.routes.parameters import encode_cursor
from trainwire.schemas.wire.messages import Metrics, Progress
from trainwire.workers.resources import Resources

NOW = datetime(2026, 11, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
JOBS: list[dict[str, Any]] = [
    {
        "id": 1,
        "name": "digits-a",
        "status": "completed",
        "created_at": NOW - 5 * HOUR,
        "started_at": NOW - 5 * HOUR,
        "completed_at": NOW - 2 * HOUR,
        "params": {"lr": 0.1, "batch size": 32, "opt": {"name": "adam"}, "amp": True},
        "tags": {"dataset": "coco", "owner": "Ada"},
        "final_metrics": {"loss": 0.5, "f1": "NaN"},
        "best_metrics": {"loss": 0.4},
    },
    {
        "id": 2,
        "name": "Digits B",
        "status": "failed",
        "created_at": NOW - 4 * HOUR,
        "started_at": NOW - 4 * HOUR,
        "completed_at": NOW - 3.5 * HOUR,
        "params": {"lr": "0.001", "opt.name": "sgd"},
        "tags": {"dataset": "imagenet"},
        "final_metrics": {"loss": 0.25},
        "error_message": "out of memory",
    },
    {
        "id": 3,
        "name": "100%_\\ \"quoted\" 'one'",
        "status": "running",
        "created_at": NOW - 3 * HOUR,
        "started_at": NOW - 3 * HOUR,
        "params": {"lr": "auto"},
        "last_metric_seq": 2,
    },
    {"id": 4, "name": None, "status": "pending", "created_at": NOW - 2 * HOUR, "params": {"lr": 1e-300}},
]


@pytest.fixture
def listed(gateway: GatewayServer, resources: Resources) -> GatewayServer:
    """A gateway with four jobs."""
    with resources.engine.begin() as connection:
        for job in JOBS:
            columns = {
                name: json.dumps(value) if isinstance(value, dict) else value for name, value in job.items()
            }
            names = ", ".join(columns)
            connection.execute(
                text(f"INSERT INTO training_jobs ({names}) VALUES (:{', :'.join(columns)})"), columns
            )
        connection.execute(
            text(
                "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, loss, extra_metrics) "
                "VALUES (3, 1, now(), 1, '0', 0.125, '{\"f1\": 0.5}'), "
                "(3, 2, now(), 1, '0', NULL, '{\"f1\": \"Infinity\"}')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO source_positions (job_id, source, kind, attempt, world_size) "
                "VALUES (1, '0', 'logs', 1, 8), (1, '1', 'logs', 1, NULL)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO training_attempts (job_id, attempt, status, provenance) "
                'VALUES (1, 1, \'completed\', \'{"host": {"name": "gpu-17"}, "user": "ada"}\')'
            )
        )
    return gateway


def ids(gateway: GatewayServer, **query: Any) -> list[int]:
    """Return the numbers of the listed jobs."""
    return [job["id"] for job in gateway.get("/jobs", params=query)["items"]]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", [4, 3, 2, 1]),
        ("status = failed", [2]),
        ("status in (failed, running)", [3, 2]),
        ("not status = failed", [4, 3, 1]),
        ("id >= 3 or id = 1", [4, 3, 1]),
        ("id = 1.5", []),
        ("id < 1e400", [4, 3, 2, 1]),
        ("params.lr < 0.01", [4, 2]),
        ("params.lr = 0.1", [1]),
        ("params.lr != 0.1", [4, 3, 2]),
        ("params.lr = auto", [3]),
        ('params.lr = "0.001"', [2]),
        ("params.lr >= 1e-400", [4, 2, 1]),
        ('params."batch size" = 32', [1]),
        ("params.amp = true", [1]),
        ("params.opt.name in (adam, sgd)", [2, 1]),
        ("params.opt.name ~ A*", [1]),
        ("params.none is null", [4, 3, 2, 1]),
        ("params.none != 3", []),
        ("not params.none = 3", [4, 3, 2, 1]),
        ('tags.dataset = "coco" and params.lr > 0', [1]),
        ("tags.dataset is not null", [2, 1]),
        ("metrics.loss < 0.3", [3, 2]),
        ("metrics.loss.last < 0.3", [3, 2]),
        ("metrics.loss.best < 1e400", [1]),
        ("metrics.loss.min = 0.125", [3]),
        ("metrics.f1.min = 0.5 and metrics.f1.max > 1e300", [3]),
        ("metrics.loss.max is null", [4, 2, 1]),
        ("metrics.f1 > 0", [3]),
        ("metrics.f1 is nan", [1]),
        ("metrics.f1 is null", [4, 2]),
        ("metrics.none < 1", []),
        ('name ~ "digits*"', [2, 1]),
        ("name ~ digits", [2, 1]),
        ("name ~ ?igits?b", [2]),
        ('name ~ "100%_"', [3]),
        ('name ~ "%"', [3]),
        (r"name ~ '\\'", [3]),
        (r"name = '100%_\\ \"quoted\" \'one\''", [3]),
        ("name is null", [4]),
        ("duration > 1h", [3, 1]),
        ("duration <= 30m", [2]),
        ("started > 2026-11-29T20:30", [3]),
        ("started > 1d ago or started <= now", [3, 2, 1]),
        ("ended is null", [4, 3]),
        ("error ~ memory", [2]),
        ("ranks = 8", [1]),
        ("machine = gpu-17 and user = ada", [1]),
        ("progress = 100", [1]),
        ("archived = true", []),
        ("archived = false", [4, 3, 2, 1]),
        ("name = '''; DROP TABLE training_jobs; --'", []),
        ('name = "\'; DROP TABLE training_jobs; --"', []),
        ('tags."\'; DROP TABLE x; --" = "%s :name $1 {0}"', []),
    ],
)
def test_jobs_are_filtered(listed: GatewayServer, written: str, expected: list[int]) -> None:
    """A filter selects the jobs for which it is true; numbers in texts are compared as numbers."""
    assert ids(listed, filter=written) == expected


def test_a_wrong_filter_is_refused_at_its_place(listed: GatewayServer) -> None:
    """The answer is 422 with the wrong text, its column and a remedy; a long filter is cut."""
    refused = listed.get("/jobs", 422, params={"filter": "status = failed and parms.lr < 1"})
    assert refused["errors"][0]["detail"] == "unknown field `parms.lr` at column 21; did you mean params.lr?"
    for name in ("filter", "sort", "columns"):
        long = listed.get("/jobs", 422, params={name: "(" * 10_000})
        assert "10,000 characters" in long["errors"][0]["detail"]
        assert len(json.dumps(long)) < 2000


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("id", [1, 2, 3, 4]),
        ("-id", [4, 3, 2, 1]),
        ("name", [3, 2, 1, 4]),
        ("-name", [1, 2, 3, 4]),
        ("status", [1, 2, 4, 3]),
        ("params.lr", [4, 2, 1, 3]),
        ("-params.lr", [1, 2, 4, 3]),
        ("tags.dataset", [1, 2, 4, 3]),
        ("metrics.loss", [3, 2, 1, 4]),
        ("-metrics.loss.last", [1, 2, 3, 4]),
        ("-metrics.f1", [3, 4, 2, 1]),
        ("metrics.f1.max", [3, 4, 2, 1]),
        ("duration", [2, 3, 1, 4]),
        ("-started", [3, 2, 1, 4]),
        ("ranks", [1, 4, 3, 2]),
        ("machine", [1, 4, 3, 2]),
        ("-progress", [1, 4, 3, 2]),
        ("archived", [4, 3, 2, 1]),
        ("exit_code", [4, 3, 2, 1]),
    ],
)
def test_jobs_are_sorted(listed: GatewayServer, resources: Resources, sort: str, expected: list[int]) -> None:
    """Jobs without a value come last in both orders, equal ones newest first; pages join without a seam."""
    if sort == "duration":
        with resources.engine.begin() as connection:
            connection.execute(
                text("UPDATE training_jobs SET started_at = now() - interval '1 h' WHERE status = 'running'")
            )
    assert ids(listed, sort=sort) == expected
    paged: list[int] = []
    cursor = None
    while True:
        page = listed.get("/jobs", params={"sort": sort, "limit": 1, "cursor": cursor})
        assert page["total"] == (4 if cursor is None else None)
        paged += [job["id"] for job in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == expected


def test_a_cursor_of_another_order_is_refused(listed: GatewayServer) -> None:
    """A cursor is valid for the order of its page only."""
    cursor = listed.get("/jobs", params={"sort": "id", "limit": 1})["next"]
    for query in ({}, {"sort": "-id"}, {"sort": "name"}):
        listed.get("/jobs", 422, params={**query, "cursor": cursor})


CURSORS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([NOW.isoformat(), "1e999999", "NaN"]),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["params.lr", "name", "-id", "metrics.loss", "started", "archived", "duration", None]),
    st.lists(CURSORS, max_size=3),
)
def test_a_forged_cursor_is_answered(listed: GatewayServer, sort: str | None, keys: list[Any]) -> None:
    """Any cursor is answered with a page or refused with 422."""
    for place in (keys, [NOW.isoformat(), 3, *keys]):
        cursor = encode_cursor(json.dumps([sort, NOW.isoformat(), place]).encode())
        answer = listed.request("GET", "/jobs", params={"sort": sort, "cursor": cursor})
        assert answer.status_code in (200, 422), answer.text


def test_columns_have_the_values_of_their_type(listed: GatewayServer) -> None:
    """Columns are numbers, texts and times, by the texts of the request; a long value is cut."""
    wanted = (
        'params.lr,params."batch size",params.opt,metrics.loss.best,metrics.f1,tags.dataset,ranks,machine,duration'
    )
    items = {job["id"]: job["columns"] for job in listed.get("/jobs", params={"columns": wanted})["items"]}
    assert items[1] == {
        "params.lr": 0.1,
        'params."batch size"': 32,
        "params.opt": {"name": "adam"},
        "metrics.loss.best": 0.4,
        "metrics.f1": "NaN",
        "tags.dataset": "coco",
        "ranks": 8,
        "machine": "gpu-17",
        "duration": 10_800.0,
    }
    assert items[2]["params.lr"] == "0.001"
    assert items[3]["metrics.f1"] == "Infinity"
    listed.get("/jobs", 422, params={"columns": ",".join(f"params.p{number}" for number in range(51))})


def test_jobs_are_searched_by_number_name_and_tag(listed: GatewayServer) -> None:
    """A search finds the beginning of a number, and a part of a name, of a tag's name and of its value."""
    found = {wanted: ids(listed, search=wanted) for wanted in ("2", "DIGITS", "coco", "owner", "100%_", "'", "%%")}
    expected = {"2": [2], "DIGITS": [2, 1], "coco": [1], "owner": [1], "100%_": [3], "'": [3], "%%": []}
    assert found == expected


def test_jobs_are_grouped(listed: GatewayServer, resources: Resources) -> None:
    """Groups of a tag, a parameter and a column have the numbers of their jobs, and a filter for the jobs."""

    def groups(by: str, **query: Any) -> dict[str | None, tuple[int, int, int]]:
        found = listed.get("/jobs/groups", params={"by": by, **query})
        assert found["complete"]
        return {each["value"]: (each["jobs"], each["running"], each["failed"]) for each in found["items"]}

    with resources.engine.begin() as connection:
        project = "UPDATE training_jobs SET given_tags = jsonb_build_object('project', CAST(:name AS text)) "
        connection.execute(text(project + "WHERE id <= 3"), {"name": 'a "b\\'})
    assert groups("project") == {None: (1, 0, 0), 'a "b\\': (3, 1, 1)}
    assert groups("project", filter="id != 2") == {None: (1, 0, 0), 'a "b\\': (2, 1, 0)}
    assert ids(listed, filter=r'project = "a \"b\\"') == [3, 2, 1]
    assert ids(listed, filter="tags.project is null", sort="project") == [4]
    assert groups('params."batch size"') == {None: (3, 1, 1), "32": (1, 0, 0)}
    assert groups("status", status="failed") == {"failed": (1, 0, 1)}
    for wrong in ("metrics.loss", "started", "duration", "-project", "projct", ""):
        listed.get("/jobs/groups", 422, params={"by": wrong})


def test_the_fields_of_jobs_are_listed(listed: GatewayServer) -> None:
    """Names of parameters, tags and metrics of the newest jobs can be requested, to offer them."""
    names = listed.get("/jobs/fields")
    assert names["params"] == ["amp", "batch size", "lr", "opt", "opt.name"]
    assert names["tags"] == ["dataset", "owner"]
    assert names["metrics"] == ["f1", "loss"]
    assert "duration" in names["jobs"]


def patch(gateway: GatewayServer, job: int, document: Any, status: int = 200, token: str | None = None) -> Any:
    """Change a job, and return the document of the answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = gateway.request("PATCH", f"/jobs/{job}", json=document, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_changes_by_people_outlast_the_trainer(
    gateway: GatewayServer, resources: Resources, sender: Sender
) -> None:
    """The trainer's next name and tags do not replace those of a person; without them the trainer's are shown."""
    started = Metrics(name="trainer", tags={"team": "a", "old": "1"}, progress=Progress(status="running"))
    sender.send(started, job=1)
    drain(resources, "metrics", 1)
    changed = patch(gateway, 1, {"name": " mine ", "note": "good", "tags": {"team": "b", "new": "2", "old": None}})
    assert (changed["name"], changed["note"]) == ("mine", "good")
    sender.send(Metrics(name="trainer 2", tags={"team": "c", "old": "2", "x": "y"}), job=1)
    sender.send(metrics(ts=NOW_NS, loss=1.0), job=1)
    sender.send(completion(), job=1)
    for kind in ("metrics", "completions"):
        drain(resources, kind, 1)
    job = gateway.get("/jobs/1")
    assert (job["name"], job["note"], job["status"]) == ("mine", "good", "completed")
    assert job["tags"] == {"team": "b", "new": "2", "x": "y"}
    assert ids(gateway, filter="tags.new = 2 and tags.old is null and name = mine", search="mine") == [1]
    patch(gateway, 1, {"name": "", "note": ""})
    job = gateway.get("/jobs/1")
    assert (job["name"], job["note"], job["tags"]["team"]) == ("trainer 2", None, "b")


def test_an_archived_job_is_hidden(listed: GatewayServer) -> None:
    """An archived job is in no list, unless the request or the filter asks for it; it can be restored."""
    assert patch(listed, 2, {"archived": True})["archived_at"] is not None
    assert ids(listed) == [4, 3, 1]
    assert listed.get("/jobs")["total"] == 3
    assert ids(listed, archived=True) == [4, 3, 2, 1]
    assert ids(listed, filter="archived = true") == [2]
    assert patch(listed, 2, {"archived": False})["archived_at"] is None
    assert ids(listed) == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "document",
    [
        {"name": "x" * 1001},
        {"note": "x" * 10_001},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"tags": {"": "x"}},
        {"tags": {"x" * 201: "x"}},
        {"tags": {"x": "y" * 201}},
        {"tags": {str(number): "x" for number in range(101)}},
        {"tags": {"x": 1}},
        {"status": "completed"},
        {"archived": "perhaps"},
        [],
    ],
)
def test_a_wrong_change_is_refused(listed: GatewayServer, document: Any) -> None:
    """The answer is 422 and names the part; nothing is changed."""
    before = listed.get("/jobs/1")
    patch(listed, 1, document, 422)
    assert listed.get("/jobs/1") == before


def test_only_admins_change_jobs(guarded: GatewayServer, resources: Resources) -> None:
    """A viewer's and a trainer's token may not change a job, an admin's may; an unknown job is 404."""
    with resources.engine.begin() as connection:
        connection.execute(text("INSERT INTO training_jobs (id, name) VALUES (1, 'a')"))
        tokens = {role: create_token(connection, role, role, job, None)[1] for role, job in ROLES}
    for role in ("viewer", "trainer"):
        patch(guarded, 1, {"name": "b"}, 403, tokens[role])
    answer = guarded.request("PATCH", "/jobs/1", json={"name": "b"})
    assert answer.status_code == 401
    assert patch(guarded, 1, {"name": "b"}, 200, tokens["admin"])["name"] == "b"
    patch(guarded, 2, {"name": "b"}, 404, tokens["admin"])


ROLES: Any = [("viewer", None), ("trainer", 1), ("admin", None)]
