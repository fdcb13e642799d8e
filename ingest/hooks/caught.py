"""Adds the metrics that hooks in the training report to the job, and counts stored and unsupported values."""

from __future__ import annotations

import binascii
import os
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from trainwire.ingest.hooks.tensorboard_events import (
    SPLITS,
    DamagedEventError,
    Event,
    EventDecoder,
    metric_prefix,
)
from trainwire.ingest.process.ranks import find_place
from trainwire.ingest.provenance.masking import masked_fields

if TYPE_CHECKING:
    from trainwire.ingest.hooks.artifacts import ArtifactUploads
    from trainwire.ingest.run import Run

TENSORBOARD: Final = "tensorboard"
PRINTED: Final = "printed lines"
_SHOWN: Final = 5


class Caught:
    """Adds each value that a hook reports to the `Run` of the reporting process's rank, and counts the values.

    Values that trainwire does not store, such as images, are counted too. Thread-safe.
    """

    def __init__(
        self, run: Run, run_of_rank: Callable[[int], Run], artifacts: ArtifactUploads | None = None
    ) -> None:
        self._run = run
        self._run_of_rank = run_of_rank
        self._artifacts = artifacts
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()
        self._owners: dict[str, str] = {}
        """Metric name -> the library whose values are used."""
        self._not_taken: Counter[tuple[str, str]] = Counter()
        self._failures: dict[str, str] = {}
        self._params: dict[str, Any] = {}
        self._tags: dict[str, Any] = {}
        self._folders = _Folders()
        self._ranks: dict[int, Run] = {}
        self.has_sdk = False
        """Whether a process of the training has a `Run` of its own."""
        self.summary: dict[str, float] = {}
        """Final metric values that the training has set itself, as `run.summary` in W&B."""

    def logs_otherwise(self, by: str) -> bool:
        """Return whether the SDK, or a library other than `by`, has reported metrics."""
        return self.has_sdk or bool(self._values.keys() - {by})

    def skip(self, folder: str) -> None:
        """Do not read event files in this TensorBoard folder: a process with its own `Run` writes them."""
        self._folders.prefix_of(folder)

    def is_hooked(self, folder: str) -> bool:
        """Return whether a hook reports the events of this TensorBoard folder; its files are then not read."""
        return self._folders.knows(folder)

    def metrics(
        self,
        by: str,
        values: Mapping[str, float],
        *,
        ts: int,
        step: float | None = None,
        epoch: float | None = None,
        rank: int | None = None,
    ) -> None:
        """Add metric values of one step that library `by` has logged, measured at `ts` (nanoseconds since 1970).

        If several libraries report a metric, only the values of the first library are used, because each counts
        steps differently. A library always replaces printed lines, which may have arrived first.
        """
        with self._lock:
            if by != PRINTED:
                self._owners |= {name: by for name in values if self._owners.get(name) == PRINTED}
            taken = {name: value for name, value in values.items() if self._owners.setdefault(name, by) == by}
            if taken:
                self._values[by] += len(taken)
            if len(taken) < len(values):
                self._not_taken[by, "values that another library reports"] += len(values) - len(taken)
        if taken:
            self._of_rank(rank).metric_at(ts, taken, step=step, epoch=epoch)

    def params(self, values: Mapping[str, Any]) -> None:
        """Merge `values` into the job's parameters; secrets are masked."""
        values = masked_fields(values)
        with self._lock:
            before = dict(self._params)
            self._params.update(values)
            params = dict(self._params)
        if params != before:
            self._run.describe(params=params)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Merge `values` into the job's tags."""
        with self._lock:
            self._tags.update(values)
            tags = dict(self._tags)
        self._run.describe(tags=tags)

    def log(self, text: str) -> None:
        """Add a log line to the job about an action of a library, such as the start of a run in MLflow."""
        self._run.log(text, level="INFO")

    def event(self, folder: str, event: Event, rank: int | None) -> None:
        """Add the values of a TensorBoard event to the job: scalars, parameters, and texts as log lines.

        A metric's name is the prefix of `folder` and the tag.
        """
        prefix = self._folders.prefix_of(folder)
        if event.scalars:
            values = {prefix + tag: number for tag, number in event.scalars.items()}
            self.metrics(TENSORBOARD, values, ts=event.ts, step=event.step, rank=rank)
        if event.params:
            self.params(event.params)
        for tag, text in event.texts:
            self._run.log(f"{prefix}{tag} (step {event.step}): {text}", level="INFO")
        for kind in event.not_taken:
            self.not_taken(TENSORBOARD, kind)

    def artifact(self, record: Mapping[str, Any], rank: int | None) -> None:
        """Upload a file or folder that the training has logged with MLflow.

        If uploads are not enabled, only count the file as not stored.
        """
        if self._artifacts is None:
            self.not_taken("mlflow", "files to upload")
        else:
            self._artifacts.take(record, rank)

    def not_taken(self, by: str, kind: str, count: int = 1) -> None:
        """Add `count` to the number of values of type `kind`, logged by library `by`, that are not stored."""
        with self._lock:
            self._not_taken[by, kind] += count

    def failed(self, by: str, text: str) -> None:
        """Keep error `text` of `by` (a hook, file or option) for the summary; only the first error of each."""
        with self._lock:
            self._failures.setdefault(by, text)

    def finish(self, exit_code: int) -> None:
        """Log the summary of the collected values, and finish the `Run` of each rank except the launcher's own.

        Each of these runs waits at most a second.
        """
        sentence = self.sentence()
        if sentence is not None:
            self._run.log(f"trainwire: {sentence}", log_type="stderr", level="INFO")
        for run in self._ranks.values():
            run.finish(exit_code=exit_code, timeout_s=1.0)

    def _of_rank(self, rank: int | None) -> Run:
        if not rank:  # the launcher stands for the first rank
            return self._run
        with self._lock:
            if rank not in self._ranks:
                self._ranks[rank] = self._run_of_rank(rank)
            return self._ranks[rank]

    def sentence(self) -> str | None:
        """Return a summary as text; None if nothing was collected and nothing failed.

        It names the stored values by library, the five most frequent kinds of values that were not stored, the
        uploads and the errors.
        """
        with self._lock:
            names = Counter(self._owners.values())
            taken = [
                f"{_counted(count, 'value')} of {_counted(names[by], 'metric')} from {by}"
                for by, count in sorted(self._values.items())
            ]
            left = [f"{count:,} of {kind} from {by}" for (by, kind), count in self._not_taken.most_common(_SHOWN)]
            failures = [f"{by} failed ({text})" for by, text in sorted(self._failures.items())]
        parts = []
        if taken:
            parts.append(f"caught {', '.join(taken)}")
        if left:
            parts.append(f"not taken: {', '.join(left)}")
        uploads = None if self._artifacts is None else self._artifacts.sentence()
        return "; ".join([*parts, *([uploads] if uploads else []), *failures]) or None


class HookedProcess:
    """Processes the values that the hooks in one process of the training report.

    If that process has its own `Run`, only values of libraries that store them nowhere else are used.
    """

    def __init__(self, caught: Caught) -> None:
        self._caught = caught
        self._rank: int | None = None
        self._has_sdk = False
        self._replaced = {"mlflow"}
        """Libraries that store the logged values nowhere else.

        Their values are used even if the process has a `Run`.
        """
        self._decoders: dict[str, EventDecoder] = {}

    def take(self, record: Mapping[str, Any]) -> None:
        """Process one record of a hook; `record["type"]` is its type, such as `metrics`.

        A record of an unknown type is counted as a value that is not stored. Raises `KeyError`, `TypeError` or
        `ValueError` for a record without the fields of its type.
        """
        kind = str(record.get("type"))
        if kind == "process":
            environ = record.get("environ")
            self._rank = find_place(environ).rank if isinstance(environ, dict) else None
        elif kind == "sdk":
            self._has_sdk = self._caught.has_sdk = True
        elif kind == "event":
            self._take_event(str(record["folder"]), str(record["data"]))
        elif kind == "replaced":
            self._replaced.add(str(record["by"]))
        elif not self._has_sdk or record.get("by") in self._replaced:
            self._take_values(kind, str(record.get("by", "")), record)

    def _take_values(self, kind: str, by: str, record: Mapping[str, Any]) -> None:
        match kind:
            case "metrics":
                values, step = _numbers(record["values"]), record.get("step")
                ts = int(record.get("ts") or time.time_ns())
                self._caught.metrics(by, values, ts=ts, step=step, rank=self._rank)
            case "params":
                self._caught.params(record["values"])
            case "tags":
                self._caught.tags(record["values"])
            case "log":
                self._caught.log(str(record["text"]))
            case "artifact":
                self._caught.artifact(record, self._rank)
            case "summary":
                self._caught.summary.update(_numbers(record["values"]))
            case "failure":
                self._caught.failed(f"the hook into {by}", str(record["text"])[:300])
            case _:
                self._caught.not_taken(by, str(record.get("kind", kind))[:100], int(record.get("count", 1)))

    def _take_event(self, folder: str, data: str) -> None:
        if self._has_sdk:
            self._caught.skip(folder)
            return
        decoder = self._decoders.setdefault(folder, EventDecoder())
        try:
            self._caught.event(folder, decoder.decode(b64decode(data, validate=True)), self._rank)
        except (DamagedEventError, binascii.Error) as exc:
            self._caught.failed(f"the hook into {TENSORBOARD}", str(exc))


class _Folders:
    """Assigns a prefix of metric names to each folder of TensorBoard's event files.

    The root is the folder of the first event, or the parent folder if the name is one such as `train`. The root's
    metrics have no prefix. The prefix of a folder below the root is its path from the root; that of any other
    folder is its name.
    """

    def __init__(self) -> None:
        self._root: str | None = None
        self._prefixes: dict[str, str] = {}

    def knows(self, folder: str) -> bool:
        return os.path.abspath(folder) in self._prefixes

    def prefix_of(self, folder: str) -> str:
        path = os.path.abspath(folder)
        known = self._prefixes.get(path)
        if known is None:
            if self._root is None:
                self._root = os.path.dirname(path) if os.path.basename(path) in SPLITS else path
            inside = os.path.relpath(path, self._root)
            known = metric_prefix(os.path.basename(path) if inside.startswith("..") else inside)
            self._prefixes[path] = known
        return known


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, dict):
        raise TypeError(f"values={str(values)[:100]} is no mapping")
    return {str(name): float(number) for name, number in values.items() if isinstance(number, int | float)}


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
