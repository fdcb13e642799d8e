"""`trainwire stop`: the request, its errors, and a job that was stopped."""

from __future__ import annotations

import getpass
import json

import pytest
from sqlalchemy import text

from tests.factories import Sender, completion, drain
from tests.integration.cli.conftest import Trainwire
from trainwire.schemas.wire.messages import Metrics
from trainwire.schemas.wire.validation import LEAST_MADE_ID
from trainwire.workers.resources import Resources


@pytest.fixture
def _running(sender: Sender, resources: Resources) -> None:
    """Job 7, which runs."""
    sender.send(Metrics(name="digits"), job=7)
    drain(resources, "metrics", job=7)


@pytest.mark.usefixtures("_running")
def test_a_job_is_asked_to_stop(connected: Trainwire, resources: Resources) -> None:
    """Author, time and reason are stored and shown; the second request shows the first."""
    done = connected("stop", "digits", "--reason", "loss is NaN")
    assert done.code == 0
    assert f"job 7, attempt 1: {getpass.getuser()} asked it to stop" in done.out
    assert "loss is NaN" in done.out
    again = json.loads(connected("stop", "7", "--by", "anna", "--json").out)
    assert (again["requested_by"], again["reason"]) == (getpass.getuser(), "loss is NaN")
    with resources.engine.connect() as connection:
        rows = connection.execute(text("SELECT job_id, attempt, requested_by, reason FROM stop_requests")).all()
    assert rows == [(7, 1, getpass.getuser(), "loss is NaN")]
    assert f"asked by {getpass.getuser()}" in connected("status", "7").out


@pytest.mark.usefixtures("_running")
def test_a_stopped_job_names_who_stopped_it(connected: Trainwire, sender: Sender, resources: Resources) -> None:
    """Status, list and filter have `stopped`, and the name of the author."""
    connected("stop", "7", "--by", "anna", "--reason", "enough")
    sender.send(completion(stopped=True, exit_code=143), job=7)
    drain(resources, "completions", job=7)
    assert "stopped by anna" in connected("status", "7").out
    assert "stopped by anna" in connected("jobs", "--filter", "status = stopped").out
    document = json.loads(connected("status", "7", "--json").out)
    assert (document["status"], document["exit_code"], document["stop"]["reason"]) == ("stopped", 143, "enough")


@pytest.mark.usefixtures("_running")
def test_wrong_requests_are_one_sentence(connected: Trainwire, sender: Sender, resources: Resources) -> None:
    """An unknown job and one that has ended are errors with exit code 1."""
    unknown = connected("stop", "99")
    assert (unknown.code, "no job 99" in unknown.err) == (1, True)
    sender.send(completion(), job=7)
    drain(resources, "completions", job=7)
    ended = connected("stop", "7")
    assert (ended.code, "job 7 has ended (completed)" in ended.err) == (1, True)


def test_the_last_digits_of_a_number_change_no_job(
    connected: Trainwire, sender: Sender, resources: Resources
) -> None:
    """They find a job to read; to change one, the whole number is needed: it may be that of another job."""
    made = LEAST_MADE_ID + 4711
    sender.send(Metrics(name="digits"), job=made)
    drain(resources, "metrics", job=made)
    ending = str(made)[-5:]
    assert connected("status", ending).code == 0
    for command in (["stop", ending], ["rename", ending, "other"], ["tag", ending, "a=b"]):
        refused = connected(*command)
        assert refused.code == 1
        assert f"no job {ending}; the number of job {made} ends so: write out its number" in refused.err
    assert connected("stop", str(made)).code == 0
