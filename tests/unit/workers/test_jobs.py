"""The fold from messages to the state of a job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import NOW_NS, SECOND_NS, checkpoint, completion, logs, metrics
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import Body, Checkpoint, Completion, Metrics, Point, Progress, Status
from trainwire.workers.drain.jobs import JobState
from trainwire.workers.drain.lifetimes import began_at


def folded(*bodies: Body, attempt: int = 1) -> JobState:
    """Return a new job after these messages of one attempt."""
    job = JobState(1)
    for body in bodies:
        job.fold(body, attempt)
    return job


def progress(**fields: object) -> Metrics:
    """Return a message with progress only."""
    return Metrics(ts=NOW_NS, progress=Progress(**fields))  # type: ignore[arg-type]


def saved(uri: str, second: int, kind: str = "last", **fields: object) -> Checkpoint:
    """A checkpoint that was saved in this second."""
    return Checkpoint(ts=NOW_NS + second * SECOND_NS, kind=kind, uri=uri, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "status", "exit_code"),
    [
        (completion("completed"), "completed", None),
        (completion("failed"), "failed", None),
        (completion("completed", exit_code=3), "failed", 3),
        (completion("failed", exit_code=0), "completed", 0),
    ],
)
def test_the_status_follows_the_exit_code(said: Body, status: str, exit_code: int | None) -> None:
    """Exit code 0 is completed, any other failed; without one the stated status counts."""
    job = folded(logs("a"), said)
    assert (job.status, job.exit_code) == (status, exit_code)


def test_a_late_message_does_not_reopen_a_finished_attempt() -> None:
    """Progress that arrives after the completion is stored, and the status stays."""
    job = folded(completion(), progress(status="running", current_epoch=3, total_epochs=4))
    assert (job.status, job.current_epoch, job.progress_percent) == ("completed", 3, 75.0)


def test_a_new_attempt_reopens_the_job() -> None:
    """A message of the next attempt makes the job running, without the earlier attempt's end."""
    job = folded(progress(current_epoch=5), completion("failed", error_message="boom", exit_code=1))
    job.fold(logs("again", ts=NOW_NS + 9 * SECOND_NS), 2)
    assert (job.status, job.attempt, job.completed_at, job.error_message) == ("running", 2, None, None)
    assert (job.exit_code, job.current_epoch) == (None, None)
    assert job.started_at == to_datetime(NOW_NS + 9 * SECOND_NS)


def test_an_earlier_attempt_does_not_change_the_present_one() -> None:
    """The completion of attempt 1 that arrives during attempt 2 changes nothing."""
    job = folded(logs("a"), attempt=2)
    job.fold(completion("failed", exit_code=9), 1)
    assert (job.status, job.attempt, job.exit_code) == ("running", 2, None)


def test_an_exit_code_outranks_a_word() -> None:
    """If the script states failed and its launcher exit code 0, the job has completed, in either order."""
    word, code = completion("failed", error_message="caught"), completion("completed", exit_code=0)
    assert folded(word, code).status == folded(code, word).status == "completed"
    word, code = completion("completed"), completion("failed", exit_code=3, error_message="exit code 3")
    assert folded(word, code).status == folded(code, word).status == "failed"
    assert folded(code, word).exit_code == 3


def test_an_exit_code_that_is_not_known_is_outranked_by_any_that_is() -> None:
    """An exit code or a status stated by the process replaces an unknown end, in either order."""
    unknown = completion(status="ended", exit_unknown=True)
    assert folded(unknown).status == "ended"
    assert folded(unknown).is_finished
    for known, status in (
        (completion(status="completed", exit_code=0), "completed"),
        (completion(exit_code=3), "failed"),
    ):
        assert folded(unknown, known).status == folded(known, unknown).status == status
    for known in (completion(status="completed"), completion(status="failed")):
        assert folded(unknown, known).status == folded(known, unknown).status == known.status
    assert (
        folded(progress(status="running"), completion(status="ended", exit_unknown=True, rank=2)).status
        == "running"
    )


def test_the_message_with_a_traceback_is_kept() -> None:
    """Of two failures of one attempt, the message that came with a traceback is the one to show."""
    inner = completion("failed", error_message="ValueError: no data", traceback="Traceback ...")
    outer = completion("failed", exit_code=1, error_message="exit code 1")
    assert folded(inner, outer).error_message == folded(outer, inner).error_message == "ValueError: no data"


def test_one_rank_of_many_does_not_complete_the_job() -> None:
    """The success of rank 3 does not complete the job; its failure fails it."""
    assert folded(logs("a"), completion(rank=3)).status == "running"
    assert folded(logs("a"), completion("failed", rank=3)).status == "failed"
    assert folded(logs("a"), completion(rank=0)).status == "completed"


def test_of_several_launchers_one_failure_is_the_jobs() -> None:
    """A launcher with another exit code than 0 fails the job, before or after one that ends with 0."""
    well, killed = completion(exit_code=0), completion(exit_code=137, error_message="signal 9")
    assert folded(logs("a"), well, logs("another machine's")).status == "completed"
    for said in ((well, killed), (killed, well), (well, killed, well)):
        job = folded(logs("a"), *said)
        assert (job.status, job.exit_code, job.error_message) == ("failed", 137, "signal 9")


def test_the_end_of_a_source_does_not_change_the_job() -> None:
    """A forked child that ends, or the leftovers of a killed trainer, change no status and revive no lost job."""
    assert folded(completion("ended")).status == "running"
    for said in (logs("a"), completion("failed", exit_code=3), completion(exit_code=0)):
        before = folded(said)
        assert folded(said, completion("ended", ts=NOW_NS + 9 * SECOND_NS)) == before
    lost = folded(logs("a"))
    lost.status = "lost"
    lost.fold(completion("ended"), 1)
    assert lost.status == "lost"


def test_zero_is_a_value() -> None:
    """0.0 as accuracy and 0 as epoch are kept, not taken for missing."""
    job = folded(progress(current_epoch=0, total_epochs=10), completion(final_metrics={"acc": 0.0}, best_epoch=0))
    assert (job.current_epoch, job.progress_percent, job.final_accuracy, job.best_epoch) == (0, 0.0, 0.0, 0)


def test_checkpoints_move_their_paths() -> None:
    """A checkpoint replaces the best path, the last path, or both, by its kind."""
    job = folded(checkpoint("a"), checkpoint("b", kind="last"), checkpoint("c", kind="epoch", is_best=True))
    assert (job.best_checkpoint_path, job.last_checkpoint_path) == ("c", "c")
    assert folded(checkpoint("a"), checkpoint("b", kind="last")).best_checkpoint_path == "a"


def test_checkpoint_paths_move_only_forwards() -> None:
    """A checkpoint whose upload was retried arrives after a newer one, and does not replace its path."""
    newer, older = saved("s3://b/2.pt", 2, is_best=True), saved("s3://b/1.pt", 1, is_best=True)
    for job in (folded(older, newer), folded(newer, older)):
        assert (job.best_checkpoint_path, job.last_checkpoint_path) == ("s3://b/2.pt", "s3://b/2.pt")
        assert job.best_checkpoint_at == job.last_checkpoint_at == to_datetime(newer.ts)


def test_a_new_attempt_starts_its_paths_anew() -> None:
    """The first checkpoint of an attempt replaces the path of the earlier attempt, with any times."""
    job = folded(saved("s3://b/1/last.pt", 9))
    job.fold(logs("again"), 2)
    assert job.last_checkpoint_path == "s3://b/1/last.pt"
    job.fold(saved("s3://b/2/last.pt", 3), 2)
    assert job.last_checkpoint_path == "s3://b/2/last.pt"
    job.fold(saved("s3://b/1/final.pt", 10), 1)
    assert job.last_checkpoint_path == "s3://b/2/last.pt"


def test_the_end_names_the_final_checkpoints() -> None:
    """A completion's paths replace those of all checkpoints, also of one that arrives later."""
    end = completion(ts=NOW_NS + 5 * SECOND_NS, best_checkpoint_path="s3://b/x", final_checkpoint_path="s3://b/y")
    late = saved("s3://b/1.pt", 1, is_best=True)
    for job in (folded(end, late), folded(late, end)):
        assert (job.best_checkpoint_path, job.last_checkpoint_path) == ("s3://b/x", "s3://b/y")


def test_a_local_path_at_the_end_does_not_hide_an_upload() -> None:
    """If a completion has the local path of an uploaded file, the URI stays, or follows with the upload."""
    end = completion(ts=NOW_NS + 5 * SECOND_NS, best_checkpoint_path="out/b.pt", last_checkpoint_path="out/l.pt")
    best, last = saved("s3://b/b.pt", 1, kind="best"), saved("s3://b/l.pt", 2)
    for job in (folded(best, last, end), folded(end, last, best)):
        assert (job.best_checkpoint_path, job.last_checkpoint_path) == ("s3://b/b.pt", "s3://b/l.pt")
    assert folded(end).last_checkpoint_path == "out/l.pt"
    assert folded(saved("out/l.pt", 1), end).last_checkpoint_path == "out/l.pt"
    # The upload of an earlier attempt is another checkpoint.
    job = folded(last)
    job.fold(end, 2)
    assert job.last_checkpoint_path == "out/l.pt"


def test_a_stated_attempt_is_ended_by_any_clock() -> None:
    """The completion of a rank whose clock is an hour behind ends an attempt that it states, not a derived one."""
    end = completion(ts=NOW_NS - 3500 * SECOND_NS, started_at=NOW_NS - 3600 * SECOND_NS)
    for is_stated, status in ((False, "running"), (True, "completed")):
        job = folded(logs("of another rank"))
        job.fold(end, 1, is_stated=is_stated)
        assert job.status == status


def test_a_source_without_an_attempt() -> None:
    """It keeps its attempt, joins the attempt that was running when it began, or starts the next."""
    job = folded(logs("a"))

    def attempt_of(body: Body, known: int | None = None) -> int:
        return job.attempt_of_source(0, known, began_at(body))

    assert attempt_of(logs("b")) == 1
    job.fold(completion(ts=NOW_NS + 5 * SECOND_NS), 1)
    assert attempt_of(logs("late rank", ts=NOW_NS + 4 * SECOND_NS)) == 1
    assert attempt_of(logs("new run", ts=NOW_NS + 6 * SECOND_NS)) == 2
    assert attempt_of(logs("new run", ts=NOW_NS + 6 * SECOND_NS), known=1) == 1
    launcher = completion(ts=NOW_NS + 6 * SECOND_NS, started_at=NOW_NS, exit_code=0)
    assert attempt_of(launcher) == 1
    assert attempt_of(logs("a launcher's first line", ts=NOW_NS + 6 * SECOND_NS, started_at=NOW_NS)) == 1
    assert job.attempt_of_source(7, 1, began_at(logs("said"))) == 7


def test_name_params_and_links_are_kept_until_sent_again() -> None:
    """Name, params and links of one message stay if the next one has none."""
    job = folded(Metrics(name="digits", params={"lr": 1}, mlflow_run_id="r1", ts=NOW_NS), metrics(loss=1.0))
    assert (job.name, job.params, job.mlflow_run_id) == ("digits", {"lr": 1}, "r1")


def test_a_late_message_takes_a_lost_job_back() -> None:
    """Any message makes a lost job running; system metrics alone do not do so for a stalled job."""
    machine = Metrics(points=[Point(ts=NOW_NS, values={"system/cpu_percent": 99.0})])
    cases: list[tuple[Status, Body, Status]] = [
        ("lost", machine, "running"),
        ("lost", completion("failed"), "failed"),
        ("stalled", machine, "stalled"),
        ("stalled", logs("a"), "running"),
        ("stalled", completion(), "completed"),
    ]
    for status, body, expected in cases:
        job = JobState(1, status=status, quiet_since=to_datetime(NOW_NS), status_reason="why")
        job.fold(body, 1)
        assert job.status == expected
        assert (job.quiet_since is None) == (expected != "stalled") == (job.status_reason is None)


def test_a_message_of_an_earlier_attempt_does_not_take_a_lost_job_back() -> None:
    """Only a message of the newest attempt makes a lost job running."""
    job = JobState(1, status="lost", attempt=2)
    job.fold(logs("late"), 1)
    assert job.status == "lost"


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ([{"stopped": True}], "stopped"),
        ([{"stopped": True}, {"exit_code": 0}], "stopped"),  # the launcher has seen the exit code only
        ([{"exit_code": 0}, {"stopped": True}], "stopped"),
        ([{"status": "failed", "error_message": "NCCL", "rank": 1}, {"stopped": True}], "stopped"),
        ([{"stopped": True}, {"status": "failed", "error_message": "NCCL", "rank": 1}], "stopped"),
        ([{"status": "failed"}, {"stopped": True, "exit_code": 143}], "stopped"),
        ([{"stopped": True}, {"exit_code": 3}], "failed"),  # it was asked, and failed for another reason
        ([{"stopped": True, "rank": 1}, {}], "completed"),  # the end of rank 0 counts
        ([{"status": "ended", "stopped": True, "of": "0-x"}], "running"),
    ],
)
def test_a_stopped_job(ends: list[dict[str, Any]], status: str) -> None:
    """A request that a process has obeyed is the job's end, unless the launcher has seen another failure."""
    job = JobState(1)
    job.fold(Metrics(ts=NOW_NS), 1)
    for end in ends:
        job.fold(completion(**end), 1)
    assert job.status == status
    if status == "stopped":
        assert job.error_message is None


FAILED = {"status": "failed"}
BY_LAUNCHER = {"status": "failed", "preempted": True, "exit_code": 143}
STATED = {"status": "failed", "preempted": True}


def _at(second: int, **fields: Any) -> Completion:
    return completion(ts=NOW_NS + second * SECOND_NS, **fields)


@pytest.mark.parametrize(
    ("ends", "status", "exit_code"),
    [
        ([_at(0, **BY_LAUNCHER)], "preempted", 143),
        ([_at(0, **BY_LAUNCHER, rank=3)], "preempted", 143),  # a pod of several
        ([_at(0, **STATED), _at(1, exit_code=0)], "preempted", 0),  # the training has said so, and exits
        ([_at(0, **STATED), _at(1, **FAILED, exit_code=85)], "preempted", 85),
        ([_at(0, **FAILED), _at(1, **BY_LAUNCHER)], "preempted", 143),  # the script, then its launcher
        ([_at(0, **FAILED, exit_code=1, rank=3), _at(1, **BY_LAUNCHER)], "failed", 1),  # others are then ended
        ([_at(0, **BY_LAUNCHER), _at(1, **FAILED, exit_code=1, rank=3)], "preempted", 143),  # the others' NCCL
        ([_at(0, **STATED, stopped=True), _at(1, **BY_LAUNCHER)], "stopped", 143),
        ([_at(0, **STATED, of="0-x")], "running", None),
    ],
)
def test_a_preempted_job(ends: list[Completion], status: str, exit_code: int | None) -> None:
    """In whichever order they arrive, of a pre-emption and a failure the cause of the other is the job's end."""
    for arriving in (ends, ends[::-1]):
        job = JobState(1)
        job.fold(Metrics(ts=NOW_NS), 1)
        for end in arriving:
            job.fold(end, 1)
        assert (job.status, job.exit_code) == (status, exit_code)


def test_a_requeued_start_is_the_next_attempt() -> None:
    """After a pre-emption a source that began later opens a new attempt, and the job is running again."""
    job = folded(logs("a"), _at(5, **BY_LAUNCHER))
    attempt = job.attempt_of_source(0, None, NOW_NS + 9 * SECOND_NS)
    job.fold(logs("again", ts=NOW_NS + 9 * SECOND_NS), attempt)
    assert (attempt, job.status, job.exit_code) == (2, "running", None)
