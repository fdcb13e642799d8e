"""Request bodies of callbacks, and the messages made from them; a value of 0.0 is not treated as missing."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainwire.gateway.callbacks.callback_streams import NewMessage
from trainwire.schemas.wire.messages import (
    ATTEMPT_UNKNOWN,
    Body,
    Checkpoint,
    Completion,
    Logs,
    Metrics,
    Outcome,
    Point,
    Progress,
)
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID, MAX_TIME_NS


def _not_bool(value: object) -> object:
    """Pydantic validator: reject booleans, which Pydantic would convert to numbers."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic reports a ValueError
    return value


_Numeric = BeforeValidator(_not_bool)
Count = Annotated[int, _Numeric, Field(ge=0, le=MAX_ID)]
Rank = Annotated[int, _Numeric, Field(ge=0, le=MAX_ATTEMPT)]
Attempt = Annotated[int, _Numeric, Field(ge=ATTEMPT_UNKNOWN, le=MAX_ATTEMPT)]
TimeNs = Annotated[int, _Numeric, Field(ge=0, le=MAX_TIME_NS)]
Finite = Annotated[float, _Numeric, Field(allow_inf_nan=False)]
Value = Annotated[float, _Numeric]
MetricName = Annotated[str, Field(min_length=1)]
MetricMap = dict[MetricName, Value]
Path = Annotated[str, Field(min_length=1, max_length=10_000)]
MAX_LINES = 10_000


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


class Callback(BaseModel):
    """Fields of every callback's request body."""

    attempt: Attempt = ATTEMPT_UNKNOWN
    """Number of the attempt; by default the newest one. A new number begins a new attempt."""
    rank: Rank | None = None


class MetricValues(BaseModel):
    """Metric values by name; other names are allowed too, either here or in `extra_metrics`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[MetricName, Value]

    loss: Value | None = None
    accuracy: Value | None = None
    learning_rate: Value | None = None
    extra_metrics: MetricMap | None = None

    def named(self) -> MetricMap:
        """Return all metric values by name, including extra fields and `extra_metrics`."""
        listed = {"loss": self.loss, "accuracy": self.accuracy, "learning_rate": self.learning_rate}
        values = {name: value for name, value in listed.items() if value is not None}
        return {**(self.__pydantic_extra__ or {}), **(self.extra_metrics or {}), **values}


class ProgressCallback(Callback):
    """The progress and the newest metrics of a job; the stored values of absent fields do not change."""

    model_config = _example(
        status="running",
        current_epoch=3,
        total_epochs=10,
        metrics={"loss": 0.31, "accuracy": 0.9, "learning_rate": 0.001, "extra_metrics": {"grad_norm": 2.5}},
        checkpoint_path="s3://models/42/epoch-3.pt",
    )

    status: Literal["pending", "running"] | None = None
    current_epoch: Count | None = None
    total_epochs: Count | None = None
    progress_percent: Finite | None = None
    step: Count | None = None
    metrics: MetricValues | None = None
    checkpoint_path: Path | None = None
    best_checkpoint_path: Path | None = None
    name: str | None = None
    params: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None
    mlflow_run_id: str | None = None

    def messages(self) -> list[NewMessage]:
        """Return a metrics message, and a checkpoint message for each checkpoint path in the request.

        A checkpoint message is appended only if its path differs from the last one of the same kind.
        """
        ts = time.time_ns()
        values = {} if self.metrics is None else self.metrics.named()
        point = Point(
            ts=ts, values=values, epoch=self.current_epoch, step=self.step, checkpoint_path=self.checkpoint_path
        )
        progress = Progress(**self.model_dump(include=set(Progress.__struct_fields__)))
        metrics = Metrics(
            points=[point] if values else [],
            progress=progress if progress != Progress() else None,
            ts=ts,
            **{name: getattr(self, name) for name in ("name", "params", "tags", "mlflow_run_id", "rank")},
        )
        paths = {"last": self.checkpoint_path, "best": self.best_checkpoint_path}
        checkpoints = [
            Checkpoint(ts=ts, kind=kind, uri=uri, epoch=self.current_epoch, step=self.step)
            for kind, uri in paths.items()
            if uri is not None
        ]
        return [NewMessage(metrics), *(NewMessage(each, once=(each.kind, each.uri)) for each in checkpoints)]


class CompletionCallback(Callback):
    """The end of a training. Without `status`, exit code 0 means completed, and any other means failed."""

    model_config = _example(
        status="completed",
        exit_code=0,
        total_epochs_completed=10,
        final_metrics={"loss": 0.0, "accuracy": 0.98},
        best_checkpoint_path="s3://models/42/best.pt",
    )

    status: Literal["completed", "failed", "preempted"] | None = None
    exit_code: Annotated[int, _Numeric, Field(ge=-MAX_ATTEMPT, le=MAX_ATTEMPT)] | None = None
    total_epochs_completed: Count | None = None
    final_metrics: MetricMap | None = None
    best_metrics: MetricMap | None = None
    best_epoch: Count | None = None
    final_checkpoint_path: Path | None = None
    best_checkpoint_path: Path | None = None
    last_checkpoint_path: Path | None = None
    mlflow_run_id: str | None = None
    error_message: str | None = None
    traceback: str | None = None

    @model_validator(mode="after")
    def _has_outcome(self) -> Self:
        if self.status is None and self.exit_code is None:
            raise ValueError("needs a status (completed, failed or preempted) or an exit_code")
        return self

    def messages(self) -> list[NewMessage]:
        """Return a list with the completion message; the Redis script adds the number of messages produced."""
        fields = self.model_dump(exclude={"attempt", "status"})
        is_failed = self.status in {"failed", "preempted"} or (self.status is None and self.exit_code != 0)
        status: Outcome = "failed" if is_failed else "completed"
        return [
            NewMessage(
                Completion(ts=time.time_ns(), status=status, preempted=self.status == "preempted", **fields)
            )
        ]


class LogsCallback(Callback):
    """Lines of stdout or stderr; `ts` (nanoseconds since 1970) and `levels`, if sent, have one item per line."""

    model_config = _example(log_type="stdout", lines=["epoch 1", "epoch 2"], levels=["INFO", None])

    log_type: Literal["stdout", "stderr"] = "stdout"
    lines: Annotated[list[str], Field(min_length=1, max_length=MAX_LINES)]
    ts: Annotated[list[TimeNs], Field(max_length=MAX_LINES)] | None = None
    levels: Annotated[list[str | None], Field(max_length=MAX_LINES)] | None = None

    def messages(self) -> list[NewMessage]:
        """Return a list with one message; without `ts` its lines get the current time, one nanosecond apart."""
        now = time.time_ns()
        times = self.ts if self.ts is not None else [now + number for number in range(len(self.lines))]
        body = Logs(log_type=self.log_type, lines=self.lines, ts=times, levels=self.levels, rank=self.rank)
        return [NewMessage(body)]


class CheckpointCallback(Callback):
    """A saved checkpoint file or folder; `kind` is best, last, epoch, or any other word."""

    model_config = _example(kind="best", uri="s3://models/42/best.pt", epoch=3, metrics={"accuracy": 0.98})

    uri: Path
    kind: Annotated[str, Field(min_length=1, max_length=200)] = "last"
    epoch: Count | None = None
    step: Count | None = None
    size_bytes: Count | None = None
    sha256: Annotated[str, Field(max_length=200)] | None = None
    is_best: bool | None = None
    metrics: MetricMap | None = None

    def messages(self) -> list[NewMessage]:
        """Return a list with one checkpoint message, whose time is the current time."""
        body: Body = Checkpoint(ts=time.time_ns(), **self.model_dump(exclude={"attempt", "rank"}))
        return [NewMessage(body)]
