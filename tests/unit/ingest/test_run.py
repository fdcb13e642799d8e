"""The public calls of a run, and the messages that they make."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainwire import Run, TrainerSettings
from trainwire.ingest.identity.default_names import named
from trainwire.ingest.settings.setting_groups import Timing

Tell = Callable[..., Any]


def test_a_text_with_newlines_is_several_lines(tell: Tell) -> None:
    """Newlines separate lines, the last one begins none, and anything has a text."""
    told = tell()
    told.run.log("a\r\nb\n\nc\n")
    told.run.log(3.5)
    told.run.log("")
    assert told.lines() == ["a", "b", "", "c", "3.5", ""]


def test_a_mapping_is_logged_as_metrics(tell: Tell) -> None:
    """Users of other trackers log their numbers so; it makes no line."""
    told = tell()
    told.run.log({"loss": 0.3, "val/acc": 0.5}, step=3, epoch=1)
    (point,) = told.points()
    assert (point.values, point.step, point.epoch) == ({"loss": 0.3, "val/acc": 0.5}, 3, 1)
    assert told.lines() == []


def test_a_copy_of_what_holds_a_run_holds_the_same_run(tell: Tell) -> None:
    """Frameworks copy their callbacks and models."""
    told = tell()
    assert copy.deepcopy({"run": told.run})["run"] is told.run
    assert copy.copy(told.run) is told.run


def test_numbers_of_any_library_are_values(tell: Tell) -> None:
    """numpy scalars, integers, zero and NaN are values; None is none."""
    told = tell()
    told.run.metric(loss=0.0, a=np.float32(0.5), b=np.int64(2), c=np.array(3.0), d=math.nan, e=None, f=True)
    values = told.points()[0].values
    assert math.isnan(values.pop("d"))
    assert values == {"loss": 0.0, "a": 0.5, "b": 2.0, "c": 3.0, "f": 1.0}


def test_what_is_no_number_is_left_out(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    """Text, arrays and huge integers are dropped and counted, each name is warned of once, nothing raises."""
    told = tell()
    for _ in range(2):
        told.run.metric(loss=1.0, bad="high", array=np.zeros(3), huge=10**400)
    assert [point.values for point in told.points()] == [{"loss": 1.0}, {"loss": 1.0}]
    assert caplog.text.count("not a number") == 3
    assert told.run.finish(timeout_s=0).dropped == {"values": 6}


def test_names_that_are_no_identifiers_go_into_values(tell: Tell) -> None:
    """`values` carries any name."""
    told = tell()
    told.run.metric(values={"val/acc": 0.5, "epoch": 1}, step=3, loss=0.1)
    point = told.points()[0]
    assert point.values == {"val/acc": 0.5, "epoch": 1.0, "loss": 0.1}
    assert (point.step, point.epoch) == (3, None)


def test_a_new_epoch_is_progress(tell: Tell) -> None:
    """The epoch of a point moves the progress, with a percentage where the epochs are known."""
    told = tell(total_epochs=4.0)  # as Transformers has num_train_epochs
    told.run.metric(epoch=1, loss=1)
    told.run.metric(epoch=1.7, loss=1)
    told.bodies("metrics")
    told.run.metric(epoch=2, loss=1)
    progress = [body.progress for body in told.bodies("metrics")]
    assert progress[0].status == "running"
    assert (progress[0].current_epoch, progress[0].progress_percent) == (1, 25.0)
    assert (progress[1].current_epoch, progress[1].progress_percent) == (2, 50.0)
    assert [point.epoch for point in told.points()] == [1, 1, 2]


def test_progress_can_be_said(tell: Tell) -> None:
    """progress() sends epoch, total and percentage."""
    told = tell()
    told.run.progress(epoch=3, total_epochs=10, percent=33)
    progress = told.bodies("metrics")[-1].progress
    assert (progress.current_epoch, progress.total_epochs, progress.progress_percent) == (3, 10, 33.0)


def test_params_become_plain(tell: Tell) -> None:
    """Paths, numpy, NaN, sets and huge integers in params become JSON values."""
    told = tell(
        params={
            "path": Path("/data"),
            "lr": np.float64(0.1),
            "n": np.int32(3),
            "nan": math.nan,
            "huge": 2**70,
            "nested": {1: [True, None, (2,)]},
            "array": np.zeros(2),
        }
    )
    assert told.bodies("metrics")[0].params == {
        "path": "/data",
        "lr": 0.1,
        "n": 3,
        "nan": "NaN",
        "huge": str(2**70),
        "nested": {"1": [True, None, [2]]},
        "array": "[0. 0.]",
    }


def test_project_and_group_are_tags(tell: Tell) -> None:
    """They take precedence over tags of these names; blank ones are left out."""
    told = tell(tags={"team": "vision", "project": "old"}, project=" digits ", group=" ")
    assert told.bodies("metrics")[0].tags == {"team": "vision", "project": "digits"}
    assert tell(group=7).bodies("metrics")[0].tags == {"group": "7"}


def test_a_run_of_the_trainings_own_in_mlflow_is_said(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    """At once where it is known, or later; an object that is no id is named with the remedy."""
    (header,) = tell(mlflow_run_id="a1b2").bodies("metrics")
    assert header.mlflow_run_id == "a1b2"
    told = tell()
    told.run.link_mlflow("c3d4")
    assert [body.mlflow_run_id for body in told.bodies("metrics") if body.mlflow_run_id] == ["c3d4"]
    told.run.link_mlflow(object())
    assert "is not the id of a run in MLflow: left out; write mlflow.active_run().info.run_id" in caplog.text


def test_a_local_checkpoint_is_measured(tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path becomes absolute and has its size; a URI stays unchanged."""
    monkeypatch.chdir(tmp_path)
    Path("best.pt").write_bytes(b"12345")
    told = tell()
    told.run.checkpoint(Path("best.pt"), kind="best", epoch=1, metrics={"acc": 0.5})
    told.run.checkpoint("s3://bucket/last.pt", step=7)
    best, last = told.bodies("checkpoints")
    assert (best.uri, best.size_bytes, best.is_best) == (str(tmp_path / "best.pt"), 5, True)
    assert (last.uri, last.kind, last.size_bytes, last.step) == ("s3://bucket/last.pt", "last", None, 7)
    told.run.finish(timeout_s=0)
    (completion,) = told.bodies("completions")
    assert completion.best_checkpoint_path == str(tmp_path / "best.pt")
    assert completion.last_checkpoint_path == "s3://bucket/last.pt"
    assert (completion.best_epoch, completion.best_metrics) == (1, {"acc": 0.5})


@pytest.mark.parametrize("kind", ["file", "folder in a file", "file's URL"])
def test_a_checkpoint_that_does_not_exist_is_named_at_once(
    tell: Tell, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """It is recorded with a warning that names the remedy: it may be saved in the background."""
    (tmp_path / "file").touch()
    path = tmp_path / ("file/best.pt" if kind == "folder in a file" else "best.pt")
    given = path.as_uri() if kind == "file's URL" else path
    told = tell()
    told.run.checkpoint(given, kind="best")
    expected = "is not a file or folder on this machine: recorded, and not uploaded; report it once it is saved"
    assert expected in caplog.text
    told.run.metric(loss=1, checkpoint_path=given)
    assert [body.uri for body in told.bodies("checkpoints")] == [str(path)]
    assert told.points()[0].checkpoint_path == str(path)
    assert not told.run.finish(timeout_s=0).dropped
    assert told.bodies("completions")[0].best_checkpoint_path == str(path)


def test_the_completion_repeats_the_last_values(tell: Tell) -> None:
    """Final metrics and epochs default to the last reported ones."""
    told = tell(rank=3)
    told.run.metric(epoch=1, loss=0.5, accuracy=0.8)
    told.run.metric(epoch=2, loss=0.4)
    told.run.finish(timeout_s=0)
    (completion,) = told.bodies("completions")
    assert completion.final_metrics == {"loss": 0.4, "accuracy": 0.8}
    assert (completion.total_epochs_completed, completion.rank, completion.status) == (2, 3, "completed")
    assert completion.started_at <= completion.ts


def quick() -> TrainerSettings:
    """Return settings for a run that ends at once, without a reachable server."""
    return TrainerSettings(redis_url="redis://127.0.0.1:1/0", timing=Timing(settle_s=0))


@pytest.fixture
def left_with(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Any]:
    """Give the completion of a run whose block an exception leaves."""
    monkeypatch.setattr("trainwire.ingest.sending.session.DEFAULT_TIMEOUT_S", 0.0)

    def leave(error: BaseException) -> Any:
        told = tell()
        with pytest.raises(type(error)), told.run:
            raise error
        return told.bodies("completions")[0]

    return leave


def test_an_exception_is_a_failure_and_goes_on(left_with: Callable[[BaseException], Any]) -> None:
    """The completion has message and traceback; the exception propagates."""
    completion = left_with(RuntimeError("out of luck"))
    assert (completion.status, completion.exit_code) == ("failed", None)
    assert completion.error_message == "RuntimeError: out of luck"
    assert completion.traceback.startswith("Traceback (most recent call last)")


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [(None, "completed", 0), (0, "completed", 0), (3, "failed", 3), ("no data", "failed", 1)],
)
def test_sys_exit_has_a_code(
    left_with: Callable[[BaseException], Any], code: Any, status: str, exit_code: int
) -> None:
    """SystemExit counts as Python counts it."""
    completion = left_with(SystemExit(code))
    assert (completion.status, completion.exit_code) == (status, exit_code)


def test_ctrl_c_is_a_failure(left_with: Callable[[BaseException], Any]) -> None:
    """KeyboardInterrupt fails the run."""
    assert left_with(KeyboardInterrupt()).error_message == "KeyboardInterrupt"


def test_finish_is_final(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    """A second finish changes nothing; later calls are left out with one warning."""
    told = tell()
    receipt = told.run.finish("failed", error="no data", timeout_s=0)
    assert told.run.finish(timeout_s=0) is receipt
    told.run.log("late")
    told.run.log("later")
    (completion,) = told.bodies("completions")
    assert (completion.status, completion.error_message) == ("failed", "no data")
    assert told.lines() == []
    assert caplog.text.count("the run is finished") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"job_id": -1}, "job_id=-1 is not a whole number from 1 to"),
        ({"job_id": "42"}, "job_id='42' is not"),
        ({"job_id": True}, "job_id=True is not"),
        ({"job_id": 2.0**60}, "job_id=1.15.* is not"),
        ({"attempt": -1}, "attempt=-1 is not"),
        ({"total_epochs": 1.5}, "total_epochs=1.5 is not"),
        ({"tags": [1], "project": "digits"}, r"tags=\[1\] is no mapping"),
        ({"params": [1]}, r"params=\[1\] is no mapping"),
        ({"mlflow_run_id": " "}, "mlflow_run_id=' ' is not the id of a run in MLflow"),
        ({"mlflow_run_id": 7}, "mlflow_run_id=7 is not the id"),
        ({"redis_url": "localhost"}, "redis_url='localhost' is not a Redis address"),
        ({"redis_url": 5}, "redis_url=5 is not an address: give a string"),
        ({"url": b"https://host"}, "url=b'https://host' is not an address"),
        ({"strict": "off"}, "strict='off' is not True or False"),
        ({"settings": {}}, r"settings=\{\} is not a TrainerSettings"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], sentence: str) -> None:
    """An invalid argument raises at once, with its value and the allowed ones."""
    with pytest.raises(ValueError, match=sentence):
        Run(**{"job_id": 42, "settings": quick(), **arguments})


def test_the_job_id_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """from_env takes the job id from its variable."""
    monkeypatch.setenv("TRAINWIRE_JOB_ID", "7")
    run = Run.from_env(name="n", rank=2, redis_url="redis://127.0.0.1:1/0")
    assert (run.job_id, run.rank, run.source[:2]) == (7, 2, "2-")
    run.finish(timeout_s=0)


def test_a_signal_handler_may_log(tell: Tell) -> None:
    """A handler that logs while the interrupted code logs does not hang."""
    told = tell()
    before = signal.signal(signal.SIGALRM, lambda *_: told.run.log("from the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(20_000):
            told.run.log("x")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lines = told.lines()
    assert lines.count("x") == 20_000
    assert "from the handler" in lines


def test_a_given_name_that_is_also_exported_is_kept() -> None:
    """A name that equals the exported one of no particular job is the run's name."""
    settings = TrainerSettings.from_env({"TRAINWIRE_JOB_NAME": "x", "REDIS_URL": "redis://localhost"})
    assert named(settings, "x", 5) == ("x", settings)
    assert named(settings, None, 5) == (None, settings)
