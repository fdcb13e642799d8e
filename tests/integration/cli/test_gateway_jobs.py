"""Commands that read and change jobs through a gateway: TRAINWIRE_URL without DATABASE_URL."""

from __future__ import annotations

import json
import threading
import webbrowser
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, insert

from tests.factories import Sender, completion, drain, logs, metrics, one, rows
from tests.gateway_server import GatewayServer
from tests.integration.cli.conftest import Trainwire
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import deleted_jobs, training_jobs, training_logs
from trainwire.stores.files.s3 import open_s3
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.resources import Resources


@pytest.fixture
def jobs(engine: Engine) -> None:
    """Three jobs that have ended, and one whose name is the number of another."""
    found = [
        {
            "id": 1,
            "name": "a",
            "status": "failed",
            "params": {"lr": 0.1, "seed": 1},
            "final_metrics": {"loss": 1.5},
        },
        {"id": 2, "name": "bench", "status": "completed", "params": {"lr": 0.5, "seed": 1}},
        {"id": 3, "name": "c", "status": "completed", "params": None},
        {"id": 4, "name": "3", "status": "completed", "params": None},
    ]
    with engine.begin() as connection:
        for job in found:
            connection.execute(insert(training_jobs).values(job))


@pytest.fixture
def remote(trainwire: Trainwire, alone: pytest.MonkeyPatch, gateway: GatewayServer) -> Trainwire:
    """Give a function that runs one command which knows only the address of a gateway."""
    for name in ("GATEWAY_URL", "TRAINWIRE_TOKEN"):
        alone.delenv(name, raising=False)
    alone.setenv("TRAINWIRE_URL", gateway.url)
    return trainwire


@pytest.fixture
def deleting(resources: Resources) -> Iterator[None]:
    """Delete jobs all the time, as workers do."""
    ended = threading.Event()
    settings = resources.settings.model_copy(update={"loki_enabled": False})
    deleter = JobDeleter(Resources(settings, resources.engine, resources.redis, None), open_s3, is_worker=True)

    def work() -> None:
        while not ended.wait(0.05):
            deleter.run_due()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join(30)


@pytest.mark.usefixtures("jobs")
def test_people_change_jobs_through_a_gateway(remote: Trainwire, engine: Engine) -> None:
    """Rename, note, tag and archive change what Postgres has, with the answers of the direct commands."""
    assert remote("rename", "a", "best one").out == "job 1 is named 'best one'\n"
    assert remote("note", "best one", "in the paper").code == 0
    assert remote("tag", "1", "team=text", "old").out == "job 1: team=text, old=true\n"
    assert remote("tag", "1", "--remove", "old").code == 0
    assert remote("archive", "1", "bench").out == "job 1 is archived\njob 2 is archived\n"
    job = one(engine, training_jobs, id=1)
    assert (job["given_name"], job["note"], job["given_tags"]["team"]) == ("best one", "in the paper", "text")
    assert job["archived_at"] is not None
    assert remote("archive", "--undo", "1").out == "job 1 is in lists again\n"
    assert remote("rename", "1", "").out == "job 1 has its trainer's name again\n"
    for wrong, reason in (
        (("rename", "1", "x" * 1001), "use at most 1,000"),
        (("tag", "1", "=x"), "has no name"),
        (("note", "nobody", "x"), "job 'nobody' is not in the database"),
    ):
        refused = remote(*wrong)
        assert (refused.code, refused.out) == (1, "")
        assert reason in refused.err


@pytest.mark.usefixtures("jobs")
def test_jobs_are_compared_through_a_gateway(remote: Trainwire) -> None:
    """The table is that of the direct command."""
    shown = [line.split() for line in remote("compare", "1", "bench").out.splitlines()]
    assert shown == [
        ["1", "2"],
        ["name", "a", "bench"],
        ["status", "failed", "completed"],
        ["params.lr", "0.1", "0.5"],
        ["metrics.loss", "1.5"],
    ]
    assert json.loads(remote("compare", "1", "2", "--all", "--json").out)[1]["params.seed"] == 1


@pytest.mark.usefixtures("jobs")
def test_the_page_of_the_gateway_is_opened(
    remote: Trainwire, gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is that of the gateway; a number that is also a name is a warning."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert remote("open", "bench", "a").out == f"{gateway.url}/#/jobs/2?compare=1\n"
    assert remote("open").out == f"{gateway.url}/#/\n"
    assert "3 is job 3, and also the name of job 4: use the number 4" in remote("open", "3").err
    assert len(opened) == 3


@pytest.mark.usefixtures("deleting")
def test_a_job_is_deleted_through_a_gateway(remote: Trainwire, resources: Resources, sender: Sender) -> None:
    """The plan, the refusal without a confirmation, the deletion by workers, and the number that is freed."""
    sender.send(metrics(loss=1.0), job=5)
    sender.send(logs("a", "b"), job=5)
    drain(resources, "metrics", 5)
    drain(resources, "logs", 5)
    assert "2 training_logs" in remote("delete", "5", "--dry-run").out
    assert "confirm the deletion of job 5 with --yes" in remote("delete", "5").err
    refused = remote("delete", "5", "--yes")
    assert (refused.code, "force the deletion" in refused.err) == (1, True)
    sender.send(completion(), job=5)
    drain(resources, "completions", 5)
    done = remote("delete", "5", "--yes", "--keep-loki", "--keep-mlflow", "--reason", "a test")
    assert (done.code, done.out.splitlines()[0]) == (0, "job 5 is deleted")
    assert rows(resources.engine, training_logs, "content") == []
    known = one(resources.engine, deleted_jobs, job_id=5)
    assert (known["reason"], known["deleted_by"]) == ("a test", "gateway, without a token")
    assert known["parts"]["loki"]["state"] == "kept"
    assert "job 5 was deleted" in remote("delete", "5", "--dry-run").out
    assert json.loads(remote("delete", "5", "--yes", "--json").out)["deleted_by"] == "gateway, without a token"
    assert "can be used again" in remote("delete", "5", "--forget").out
    assert "no job 5 in the database" in remote("delete", "5", "--dry-run").err


@pytest.mark.usefixtures("jobs")
def test_a_deletion_without_a_confirmation_needs_the_whole_name(remote: Trainwire, engine: Engine) -> None:
    """The beginning of a name, and a number that is another job's name, are refused with --yes."""
    assert "no job 'ben'" in remote("delete", "ben", "--yes").err
    assert "3 is job 3, and also the name of job 4" in remote("delete", "3", "--yes").err
    assert rows(engine, training_jobs, "id", order=["id"]) == [1, 2, 3, 4]


@pytest.mark.usefixtures("jobs")
def test_a_viewer_changes_nothing(
    trainwire: Trainwire, alone: pytest.MonkeyPatch, guarded: GatewayServer, resources: Resources
) -> None:
    """A token without the role is an error that names the role; without a gateway, its address is named."""
    with resources.engine.begin() as connection:
        _, token = create_token(connection, "reader", "viewer")
    alone.setenv("TRAINWIRE_URL", guarded.url)
    alone.setenv("TRAINWIRE_TOKEN", token)
    for command in (("rename", "1", "x"), ("delete", "1", "--yes")):
        assert "use a token with the role admin" in trainwire(*command).err
    assert trainwire("compare", "1", "2").code == 0
    alone.setenv("TRAINWIRE_URL", "http://127.0.0.1:9")
    assert "no gateway answers at http://127.0.0.1:9" in trainwire("note", "1", "x").err
