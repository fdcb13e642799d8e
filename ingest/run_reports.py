"""The methods by which a `Run` reports lines, metrics, progress, alerts and checkpoints."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainwire.ingest.arguments import Arguments, description, line_texts, moment_ns
from trainwire.ingest.call_guard import forgiving, log_call, metric_call
from trainwire.ingest.completion import History
from trainwire.ingest.lines.line_splitting import split_lines
from trainwire.ingest.provenance.recording import recorder
from trainwire.ingest.sanitize import Number, level_name, plain_text
from trainwire.ingest.sending.session import Session
from trainwire.ingest.sending.size_limits import shortened
from trainwire.ingest.uploads.checkpoint import checkpoint_at
from trainwire.schemas.wire.limits import MAX_ALERT_TEXT_CHARS, MAX_ALERT_TITLE_CHARS
from trainwire.schemas.wire.messages import Alert, Checkpoint, LogType, Metrics, Point

if TYPE_CHECKING:
    from trainwire.ingest.uploads.uploads import UploadChoice


class RunReports:
    """Mixin of `Run`: its methods that report something; none of them waits for the network or raises an error."""

    rank: int | None
    _session: Session
    _history: History
    _arguments: Arguments
    _provenance_sent: threading.Event | None

    @forgiving(log_call, 'run.log("text")')
    def log(
        self,
        text: object,
        *,
        log_type: LogType = "stdout",
        level: str | None = None,
        epoch: float | None = None,
        step: int | None = None,
    ) -> None:
        """Log a text as one line, or as several lines if it contains newlines.

        `log_type` is `stdout` or `stderr`. `level` is the name of a log level or a number of `logging`. A mapping
        is reported as metrics, for users of other trackers: `run.log({"loss": 0.3}, step=3)` is the same as
        `run.metric(values={"loss": 0.3}, step=3)`.
        `epoch` and `step` have no effect on a text.
        """
        if type(text) is not str and isinstance(text, Mapping):
            self.metric(values=text, epoch=epoch, step=step)
            return
        ts = time.time_ns()
        line = plain_text(text)
        lines = split_lines(line) if "\n" in line else (line,)
        self._session.lines.take(lines, self._arguments.log_type(log_type), ts, level_name(level))

    def log_lines(self, lines: Sequence[str], log_type: LogType, ts: int) -> None:
        """Log lines that were printed at `ts` (nanoseconds since 1970), with the log levels found in them.

        The call blocks while lines are printed faster than the disk can write them, for ten seconds if the disk
        hangs.
        """
        self._session.lines.take_printed(line_texts(lines), self._arguments.log_type(log_type), moment_ns(ts))
        self._session.relieve()

    def log_traceback(self, text: str) -> None:
        """Log the lines of a traceback, unless all of them were already captured as output."""
        if not self._session.lines.printed.contain(text):
            self.log_lines([f"TRACEBACK:\n{text}"], "stderr", time.time_ns())

    def record_provenance(self, items: frozenset[str], command: Sequence[str] | None = None) -> None:
        """Collect and send the provenance `items`, such as `git` and `packages`; ranks above 0 do nothing.

        `command` is the command that a launcher has started.
        """
        if items and not self.rank:

            def send(answer: dict[str, Any]) -> None:
                self._session.take_metric_late(Metrics(ts=time.time_ns(), provenance=answer))

            self._provenance_sent = recorder.record(items, send, command)

    def note_output(self) -> None:
        """Count output of the training as activity, so that the job is not shown as stalled.

        Output without a complete line counts too, such as a progress bar.
        """
        self._session.note_output()

    @forgiving(metric_call, "run.metric(loss=0.5, step=10)")
    def metric(
        self,
        /,
        *,
        epoch: float | None = None,
        step: int | None = None,
        values: Mapping[str, Number] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        **named: Number,
    ) -> None:
        """Report metrics measured now, as keyword arguments or in `values`; None values are left out.

        The values of a call are one point, with `epoch`, `step` and the location of a checkpoint if they are
        given. A value that is not a number is dropped and counted, with one warning. A new `epoch` also becomes
        the job's progress. Never raises.
        """
        ts = time.time_ns()
        given = named if values is None else {**self._arguments.mapping("values", values), **named}
        self._take_values(ts, given, epoch, step, self._arguments.path("checkpoint_path", checkpoint_path))

    def metric_at(
        self, ts: int, values: Mapping[str, Number], *, step: float | None = None, epoch: float | None = None
    ) -> None:
        """Report metrics that were measured at `ts` (nanoseconds since 1970); like `metric`, never raises.

        An invalid `ts` is replaced by the current time.
        """
        self._take_values(moment_ns(ts), values, epoch, step, None)

    def _take_values(self, ts: int, values: object, epoch: object, step: object, path: str | None) -> None:
        arguments = self._arguments
        numbers = arguments.numbers("values", values)
        at_epoch, at_step = arguments.count("epoch", epoch), arguments.count("step", step)
        if numbers:
            self._history.metrics.update(numbers)
            self._session.take_metric(
                Point(ts=ts, values=numbers, epoch=at_epoch, step=at_step, checkpoint_path=path)
            )
        if at_epoch is not None and at_epoch != self._history.epoch:
            self._session.take_metric(Metrics(ts=ts, progress=self._history.progress_to(at_epoch)))

    @forgiving(example='run.describe(params={"lr": 0.1})')
    def describe(self, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None) -> None:
        """Replace the parameters of the job's attempt, or its tags, or both; None leaves them unchanged."""
        try:
            described = description(None, params, tags, None)
        except ValueError as exc:
            self._session.warn_once("describe", f"{exc}; left out")
        else:
            self._session.take_metric(Metrics(ts=time.time_ns(), **described))

    @forgiving()
    def progress(
        self, epoch: int | None = None, total_epochs: int | None = None, percent: float | None = None
    ) -> None:
        """Report the progress of the training: the current epoch, the planned number of epochs, the percentage.

        None keeps the reported value. If `percent` is None, it is computed from the epochs, if both are known.
        """
        arguments = self._arguments
        epochs = arguments.count("total_epochs", total_epochs)
        if epochs is not None:
            self._history.total_epochs = epochs
        progress = self._history.progress_to(arguments.count("epoch", epoch), arguments.number("percent", percent))
        self._session.take_metric(Metrics(ts=time.time_ns(), progress=progress))

    @forgiving()
    def alert(self, title: object, text: object = "", level: str = "info") -> None:
        """Send a notification by the operators' rules (docs/alerts.md), and log it as a line.

        Args:
            title: one line, cut to 250 characters.
            text: the details, cut to 10,000 characters.
            level: `info`, `warning` or `error`.
        """
        ts, severity = time.time_ns(), self._arguments.alert_level(level)
        heading = shortened(" ".join(plain_text(title).split()) or "Alert", MAX_ALERT_TITLE_CHARS)
        details = shortened(plain_text(text).strip(), MAX_ALERT_TEXT_CHARS)
        alert = Alert(ts=ts, title=heading, text=details, level=severity)
        self._session.take_metric(Metrics(ts=ts, alerts=[alert]))
        line = f"ALERT: {heading}: {details}" if details else f"ALERT: {heading}"
        self._session.lines.take(split_lines(line), "stderr", ts, severity.upper())

    @forgiving()
    def link_mlflow(self, mlflow_run_id: str) -> None:
        """Report the id of a run in MLflow to which the training itself logs.

        The workers link the job to this run, and write nothing into it.
        """
        run_id = self._arguments.mlflow_run_id(mlflow_run_id)
        if run_id is not None:
            self._session.take_metric(Metrics(ts=time.time_ns(), mlflow_run_id=run_id))

    @forgiving()
    def checkpoint(
        self,
        path: str | os.PathLike[str],
        kind: str = "last",
        *,
        epoch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Number] | None = None,
        is_best: bool | None = None,
        upload: UploadChoice | None = None,
    ) -> None:
        """Record a checkpoint: a local file or folder (as an absolute path), or a URI such as s3://bucket/best.pt.

        If a bucket is configured (docs/checkpoints.md), the current content of a local file or folder is
        uploaded in the background, and the checkpoint is reported after the upload. `upload="none"` only
        records the path. A local path at which there is nothing is recorded with a warning.

        `kind` is any word. An upload replaces an older one of this process with the same kind, epoch, step (not
        for the kinds `best`, `last` and `final`) and file suffix. `is_best` is True by default for the kind
        `best`. `metrics` are values of this checkpoint.
        """
        arguments = self._arguments
        found = arguments.path("path", path)
        if found is None:
            return
        described = checkpoint_at(
            found,
            kind=arguments.kind(kind),
            epoch=arguments.count("epoch", epoch),
            step=arguments.count("step", step),
            metrics=arguments.numbers("metrics", metrics),
            is_best=arguments.truth("is_best", is_best),
        )
        self._session.take_checkpoint(described, arguments.upload(upload))

    def record_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Report the checkpoint in the message body `checkpoint` as it is, without an upload."""
        self._session.take_checkpoint(checkpoint, "none")

    def _note_misuse(self, call: str, text: str) -> None:
        """Log `text`, a warning that a method was called with wrong arguments, once for each method."""
        self._session.warn_once(call, text)
