"""A run for tests of training code: it keeps all messages in memory and sends none."""

from __future__ import annotations

import atexit
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack

import msgspec

from trainwire.ingest.identity.open_runs import open_runs
from trainwire.ingest.pickling import Handle
from trainwire.ingest.process.exits import terminations
from trainwire.ingest.run import Run
from trainwire.ingest.run_start import RunOptions
from trainwire.ingest.sending.buffer import Line
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.sender import Sender
from trainwire.ingest.sending.session import Session
from trainwire.ingest.settings.setting_groups import CheckpointSettings, SpoolSettings
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import Entry, open_envelope
from trainwire.schemas.wire.messages import Alert, Body, Checkpoint, Completion, Logs, Metrics, Point, Progress
from trainwire.schemas.wire.stop_requests import StopRequest

BodyT = TypeVar("BodyT", bound=Body)

_UNBOUNDED: Final = 2**62


class RecordedRun(Run):
    """A run without threads, network or files, which keeps its messages as the workers would decode them.

    It accepts the arguments of `Run` and raises the same errors for them, but ignores `strict`; the default job is
    number 1. The environment is read only by `from_env`. Checkpoints are recorded, but not uploaded.
    """

    def __init__(
        self,
        job_id: int | None = 1,
        name: str | None = None,
        *,
        settings: TrainerSettings | None = None,
        **arguments: Unpack[RunOptions],
    ) -> None:
        given = settings or TrainerSettings()
        arguments.pop("strict", None)  # it has no server
        self._settings = replace(
            given, spool=SpoolSettings(), checkpoints=CheckpointSettings(), strict=False, provenance=frozenset()
        )
        super().__init__(job_id, name, settings=self._settings, **arguments)
        # A run that a test does not finish stays unfinished, and can be garbage-collected.
        atexit.unregister(self._finish_at_exit)
        self._cancel_end_of_target()
        terminations.forget(self)
        open_runs.end(self)

    @classmethod
    def _joined(cls, handle: Handle, settings: TrainerSettings) -> RecordedRun:  # noqa: ARG003 - as of `Run`
        """Return a new recorded run with the job, attempt and rank in `handle`.

        A `Run` would instead send its messages through the process that made the handle.
        """
        return cls(handle["job_id"], attempt=handle["attempt"], rank=handle["rank"])

    @property
    def _session(self) -> _RecordedSession:
        return self._recorded

    @_session.setter
    def _session(self, sending: Session) -> None:
        """Store a recording session instead of `sending`, the session that `Run` creates.

        `sending` has not started a thread yet.
        """
        self._recorded = _RecordedSession(
            self.job_id,
            self.attempt,
            self.rank,
            self._settings,
            self._history.note_checkpoint,
            began_ns=self._started_at,
            resume_step=sending.outbox.origin.resume_step,
        )

    @property
    def lines(self) -> list[Line]:
        """The log lines so far."""
        bodies = self._bodies("logs", Logs)
        return [
            Line(body.log_type, level, ts, text)
            for body in bodies
            for text, ts, level in zip(body.lines, body.ts, body.levels or [None] * len(body.lines), strict=True)
        ]

    @property
    def text(self) -> str:
        """The text of all log lines so far, joined by newlines."""
        return "\n".join(line.text for line in self.lines)

    @property
    def points(self) -> list[Point]:
        """The points of metrics so far."""
        return [point for body in self._bodies("metrics", Metrics) for point in body.points]

    @property
    def names(self) -> list[str]:
        """The sorted names of all metrics so far."""
        return sorted({name for point in self.points for name in point.values})

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints so far."""
        return self._bodies("checkpoints", Checkpoint)

    @property
    def alerts(self) -> list[Alert]:
        """The alerts so far."""
        return [alert for body in self._bodies("metrics", Metrics) for alert in body.alerts or ()]

    @property
    def completion(self) -> Completion | None:
        """The completion; None before the end of the run."""
        return next(iter(self._bodies("completions", Completion)), None)

    @property
    def params(self) -> dict[str, Any]:
        """The last reported params; empty if there are none."""
        return self._newest("params") or {}

    @property
    def tags(self) -> dict[str, Any]:
        """The last reported tags; empty if there are none."""
        return self._newest("tags") or {}

    @property
    def reported_progress(self) -> Progress:
        """The last reported value of each field of the progress."""
        newest = Progress()
        for body in self._bodies("metrics", Metrics):
            for name, value in msgspec.structs.asdict(body.progress or Progress()).items():
                if value is not None:
                    setattr(newest, name, value)
        return newest

    def values(self, name: str) -> list[float]:
        """Return all values of a metric, in order. Raises `AssertionError` if there are none."""
        values = [point.values[name] for point in self.points if name in point.values]
        if not values:
            raise AssertionError(f"no metric {name!r} was reported, but: {_listed(self.names)}")
        return values

    def assert_logged(self, text: str, level: str | None = None) -> Line:
        """Return the first log line that contains `text`, at `level` if given.

        Raises `AssertionError` if there is none.
        """
        for line in self.lines:
            if text in line.text and level in (None, line.level):
                return line
        found = _listed([f"{line.level or ''}: {line.text}".removeprefix(": ") for line in self.lines[-20:]])
        at_level = "" if level is None else f" at level {level}"
        raise AssertionError(f"no log line{at_level} contains {text!r}; the last lines are: {found}")

    def assert_checkpoint(self, kind: str) -> Checkpoint:
        """Return the newest checkpoint of this kind. Raises `AssertionError` if there is none."""
        for checkpoint in reversed(self.checkpoints):
            if checkpoint.kind == kind:
                return checkpoint
        found = _listed([f"{checkpoint.kind} {checkpoint.uri}" for checkpoint in self.checkpoints])
        raise AssertionError(f"no checkpoint of kind {kind!r} was reported, but: {found}")

    def assert_completed(self) -> Completion:
        """Return the completion. Raises `AssertionError` if the run has not ended, or not as `completed`."""
        completion = self._ended()
        if completion.outcome != "completed":
            raise AssertionError(f"the run {completion.outcome}: {completion.error_message}")
        return completion

    def assert_failed(self, message: str = "") -> Completion:
        """Return the completion.

        Raises `AssertionError` if the run has not ended as `failed`, or its error does not contain `message`.
        """
        completion = self._ended()
        if completion.outcome != "failed":
            raise AssertionError(f"the run did not fail: it {completion.outcome}")
        if message not in (completion.error_message or ""):
            raise AssertionError(f"the run failed, but with {completion.error_message!r}, not {message!r}")
        return completion

    def request_stop(self, by: str = "test", reason: str | None = None) -> None:
        """Ask the run to stop, as the user `by` does for `reason`: `should_stop` is true from now on."""
        self._session.stop.note(self.job_id, StopRequest(by=by, reason=reason))

    def _ended(self) -> Completion:
        completion = self.completion
        if completion is None:
            raise AssertionError("the run has not ended: call finish(), or leave its `with` block")
        return completion

    def _bodies(self, kind: Kind, body_type: type[BodyT]) -> list[BodyT]:
        return [body for body in self._session.recorded(kind) if isinstance(body, body_type)]

    def _newest(self, name: str) -> Any:
        values = [getattr(body, name) for body in self._bodies("metrics", Metrics)]
        return next((value for value in reversed(values) if value is not None), None)


class _RecordedSession(Session):
    """A session that keeps its messages in memory instead of sending them."""

    def _begin(self) -> None:
        super()._begin()
        self._sender = self._recorder = _Recorder(self.outbox)

    def recorded(self, kind: Kind) -> list[Body]:
        """Return the bodies of all messages of one kind so far."""
        self._recorder.record()
        return self._recorder.bodies[kind]


class _Recorder(Sender):
    """Replaces the sender of a run: decodes each message into memory, and acknowledges it."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.bodies: dict[Kind, list[Body]] = {kind: [] for kind in KINDS}

    @property
    def is_started(self) -> bool:
        """Always True, because there is no thread to start."""
        return True

    @property
    def is_reachable(self) -> bool:
        """Always False, because there is no server."""
        return False

    def finish(self, timeout_s: float, *, may_leave: bool = False) -> None:  # noqa: ARG002 - nothing to wait for
        """Record the messages that are still in the outbox."""
        self.record()

    def record(self) -> None:
        """Decode and acknowledge all messages that were added to the outbox since the last call."""
        while self._outbox.cut():
            pass
        for kind, batch in self._outbox.to_send(_UNBOUNDED).items():
            self.bodies[kind] += [_decoded(kind, message.entry) for message in batch]
            self._outbox.mark_sent(kind, [message.seq for message in batch])
            self._outbox.release(kind, batch[-1].seq)


def _decoded(kind: Kind, entry: Entry) -> Body:
    fields = {
        name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in entry.items()
    }
    return decode_body(kind, open_envelope(fields))


def _listed(words: list[str]) -> str:
    return ", ".join(words) or "nothing"
