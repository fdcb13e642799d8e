"""The arguments of a resumed run and of a fork, and the messages that carry them."""

from __future__ import annotations

from typing import Any

import pytest

from trainwire import TrainerSettings
from trainwire.ingest.launcher.launch import LaunchOptions, launch
from trainwire.schemas.wire.messages import Metrics
from trainwire.testing import RecordedRun


def first(run: RecordedRun) -> Metrics:
    """Return the first message of a run."""
    body = run._session.recorded("metrics")[0]
    assert isinstance(body, Metrics)
    return body


def test_a_resumed_run_states_its_step() -> None:
    """Every message of a run that does not know its attempt has the step: any kind may be stored first."""
    run = RecordedRun(42, resume_from_step=4000)
    run.log("on it")
    (progress,) = [body.progress for body in [first(run)]]
    assert progress is not None
    assert (progress.resume_step, first(run).resume_step) == (4000, 4000)
    assert [body.resume_step for body in run._session.recorded("logs")] == [4000]


def test_a_script_under_the_launcher_belongs_to_the_launchers_attempt() -> None:
    """It states its step as a fact of the attempt, and begins no other one unless the launcher exports it."""
    captured = TrainerSettings(job_id=42, is_captured=True)
    run = RecordedRun(42, resume_from_step=4000, settings=captured)
    assert first(run).progress is not None
    assert (first(run).progress.resume_step, first(run).resume_step) == (4000, None)  # type: ignore[union-attr]
    exported = TrainerSettings(job_id=42, is_captured=True, resume_step=100)
    assert first(RecordedRun(42, settings=exported)).resume_step == 100
    assert first(RecordedRun(43, settings=exported)).resume_step is None


def test_a_fork_states_its_parent() -> None:
    """The first message has the parent and the step."""
    run = RecordedRun(43, parent=42, fork_step=4000)
    assert (first(run).parent_id, first(run).fork_step, first(run).resume_step) == (42, 4000, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resume_from_step": -1}, "resume_from_step=-1 is not a whole number from 0"),
        ({"resume_from_step": 1.5}, "resume_from_step=1.5 is not a whole number"),
        ({"resume_from_step": "last"}, "resume_from_step='last' is not a whole number"),
        ({"resume_from_step": True}, "resume_from_step=True is not a whole number"),
        ({"parent": 41}, "parent=41 alone is no fork: give both"),
        ({"fork_step": 3}, "fork_step=3 alone is no fork: give both"),
        ({"parent": "digits", "fork_step": 3}, "parent='digits' is not a whole number from 1"),
        ({"parent": 0, "fork_step": 3}, "parent=0 is not a whole number from 1"),
        ({"parent": 41, "fork_step": -3}, "fork_step=-3 is not a whole number from 0"),
        ({"parent": 42, "fork_step": 3}, "parent=42 is the job itself"),
        ({"parent": 41, "fork_step": 3, "resume_from_step": 3}, "give one of the two"),
        ({"job_id": None, "resume_from_step": 3}, "resume_from_step=3 needs the number of the job to resume"),
    ],
)
def test_wrong_values_are_named(arguments: dict[str, Any], words: str) -> None:
    """An error has the value and the remedy."""
    given: dict[str, Any] = {"job_id": 42, "name": "digits"} | arguments
    with pytest.raises(ValueError, match=words):
        RecordedRun(**given)


def test_the_launcher_needs_the_number_of_a_job_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not begin a new job, whose charts would go on from nothing."""
    monkeypatch.delenv("TRAINWIRE_JOB_ID", raising=False)
    with pytest.raises(ValueError, match="trainwire run --job-id 42 --resume-from-step 4000"):
        launch(["true"], LaunchOptions(resume_from_step=4000))
