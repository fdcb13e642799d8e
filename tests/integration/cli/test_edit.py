"""Lists of jobs with filters, and jobs that people rename, tag, archive and compare."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import webbrowser
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text

from tests.integration.cli.conftest import Trainwire
from trainwire.cli.terminal import safe
from trainwire.schemas.tables import training_jobs
from trainwire.workers.resources import Resources


def add(engine: Engine, *jobs: dict[str, Any]) -> None:
    """Store jobs."""
    with engine.begin() as connection:
        for job in jobs:
            connection.execute(insert(training_jobs).values(job))


@pytest.fixture
def jobs(engine: Engine) -> None:
    """Three jobs."""
    add(
        engine,
        {"id": 1, "name": "a", "status": "failed", "params": {"lr": 0.1, "opt": {"name": "adam"}, "seed": 1}},
        {
            "id": 2,
            "name": "b",
            "params": {"lr": 0.5, "opt": {"name": "sgd"}, "seed": 1},
            "final_metrics": {"loss": 0.25},
        },
        {"id": 3, "name": "c", "tags": {"team": "vision"}, "best_metrics": {"loss": 0.125}},
    )


def listed(trainwire: Trainwire, *arguments: str) -> list[int]:
    """Return the numbers of the listed jobs."""
    return [job["id"] for job in json.loads(trainwire("jobs", "--json", *arguments).out)]


@pytest.mark.usefixtures("jobs")
def test_jobs_are_filtered_sorted_and_shown_by_field(connected: Trainwire) -> None:
    """The filter, the order and the columns are those of HTTP; a wrong one is an error with its place."""
    assert listed(connected, "--filter", "params.lr >= 0.1", "--sort", "-params.lr") == [2, 1]
    assert listed(connected, "--search", "vision") == [3]
    table = connected("jobs", "--columns", "params.lr,metrics.loss.best", "--sort", "id").out.splitlines()
    assert [line.split() for line in table] == [
        ["job", "name", "status", "params.lr", "metrics.loss.best"],
        ["1", "a", "failed", "0.1"],
        ["2", "b", "pending", "0.5"],
        ["3", "c", "pending", "0.125"],
    ]
    for option in ("--filter", "--sort", "--columns"):
        refused = connected("jobs", option, "parms.lr")
        assert (refused.code, refused.out) == (1, "")
        assert f"{option}: unknown field `parms.lr` at column 1; did you mean params.lr?" in refused.err
    assert connected("jobs", "--filter", "id > 7").out == "no such jobs\n"


def test_any_number_of_jobs_is_listed(engine: Engine, connected: Trainwire) -> None:
    """More jobs than a statement of Postgres may have parameters are listed, with columns."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO training_jobs (id) SELECT n FROM generate_series(1, 70000) n"))
    assert len(listed(connected, "--limit", "70000", "--columns", "attempt")) == 70_000


@pytest.mark.usefixtures("jobs")
def test_people_change_jobs(connected: Trainwire) -> None:
    """A job can be renamed, noted, tagged and archived, and each change can be undone."""
    assert connected("rename", "a", "best one").out == "job 1 is named 'best one'\n"
    assert "(best one)" in connected("delete", "best one", "--dry-run").out
    assert connected("note", "best one", "in the paper").code == 0
    assert connected("tag", "1", "team=text", "baseline").out == "job 1: team=text, baseline=true\n"
    assert connected("tag", "3", "--remove", "team").code == 0
    assert listed(connected, "--filter", "tags.baseline = true and note ~ paper") == [1]
    assert listed(connected, "--filter", "tags.team is not null") == [1]
    assert connected("archive", "1", "b").out == "job 1 is archived\njob 2 is archived\n"
    assert listed(connected) == [3]
    assert sorted(listed(connected, "--archived")) == [1, 2, 3]
    assert connected("archive", "--undo", "1").code == 0
    assert connected("rename", "1", "").out == "job 1 has its trainer's name again\n"
    assert sorted(listed(connected)) == [1, 3]
    for wrong in (("rename", "1", "x" * 1001), ("tag", "1"), ("tag", "1", "=x"), ("note", "nobody", "x")):
        assert connected(*wrong).code == 1


@pytest.mark.usefixtures("jobs")
def test_jobs_are_compared(connected: Trainwire) -> None:
    """Only parameters that differ are shown, with final and best metrics; one job cannot be compared."""
    rows = [line.split() for line in connected("compare", "1", "b").out.splitlines()]
    assert rows == [
        ["1", "2"],
        ["name", "a", "b"],
        ["status", "failed", "pending"],
        ["params.lr", "0.1", "0.5"],
        ["params.opt.name", "adam", "sgd"],
        ["metrics.loss", "0.25"],
    ]
    assert "params.seed" in connected("compare", "1", "2", "--all").out
    assert connected("compare", "1").code == 1


@pytest.mark.usefixtures("jobs")
def test_the_page_is_opened(connected: Trainwire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of a job's page, or of a comparison, is printed and opened."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert "GATEWAY_URL" in connected("open", "1").err
    monkeypatch.setenv("GATEWAY_URL", "http://127.0.0.1:8800/")
    assert connected("open", "b", "1").out == "http://127.0.0.1:8800/#/jobs/2?compare=1\n"
    assert connected("open").out == "http://127.0.0.1:8800/#/\n"
    assert opened == ["http://127.0.0.1:8800/#/jobs/2?compare=1", "http://127.0.0.1:8800/#/"]


def test_a_reference_that_is_also_a_name_is_noted(engine: Engine, connected: Trainwire) -> None:
    """`last` and a number take precedence over a name, with a warning; `delete --yes` refuses both."""
    add(engine, {"id": 5, "name": "last"}, {"id": 6, "name": "5"})
    add(engine, {"id": 7, "name": "newest"})
    for reference, job_id, other in (("5", 5, 6), ("last", 7, 5)):
        found = connected("status", reference)
        assert found.out.splitlines()[0].split()[:2] == ["job", str(job_id)]
        assert f"{reference} is job {job_id}, and also the name of job {other}" in found.err
        refused = connected("delete", reference, "--yes", "--force")
        assert refused.code == 1
        assert f"trainwire rename {other} NAME" in refused.err


def test_a_long_name_fits_the_terminal(engine: Engine, resources: Resources) -> None:
    """In a terminal of 100 columns no line is longer, and a job has one line."""
    add(engine, {"id": 8, "name": "a-very-long-name-" * 20})
    lines = in_terminal(resources, "jobs", columns=100)
    assert len(lines) == 2
    assert max(map(len, lines)) <= 100
    assert "a-very-long-name-" in lines[1]
    assert "…" in lines[1]


def in_terminal(resources: Resources, *arguments: str, columns: int) -> list[str]:
    """Run a command with a pseudo terminal as its output, and return the lines of text."""
    ours, theirs = pty.openpty()
    servers = {"DATABASE_URL": resources.settings.database_url.get_secret_value(), "TERM": "xterm"}
    command = [sys.executable, "-m", "trainwire", *arguments]
    with subprocess.Popen(command, stdout=theirs, env=os.environ | servers | {"COLUMNS": str(columns)}) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                read = os.read(ours, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not read:
                break
            output += read
        process.wait(60)
    os.close(ours)
    return [safe(line) for line in output.decode().splitlines()]
