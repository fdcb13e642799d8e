"""One job: its state, metrics, log, checkpoints and events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from trainwire.client.download import fetch
from trainwire.client.errors import ClientError
from trainwire.client.metrics import Metrics
from trainwire.client.records import CheckpointInfo, JobInfo, StopInfo
from trainwire.client.source import LogQuery, Source
from trainwire.schemas.events import LogLine
from trainwire.schemas.lifted_metrics import COLUMN_OF


class Job:
    """A job of a `Client`; `info` is its state when it was read."""

    def __init__(self, source: Source, info: JobInfo) -> None:
        self._source = source
        self.info = info

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name or ''}: {self.status}>"

    @property
    def id(self) -> int:
        """The job's number."""
        return self.info.id

    @property
    def name(self) -> str | None:
        """The job's name."""
        return self.info.name

    @property
    def status(self) -> str:
        """The status when the job was read; `refresh` reads it again."""
        return self.info.status

    def refresh(self) -> Job:
        """Return the job as it is now."""
        return Job(self._source, self._source.job(self.id))

    def stop(self, reason: str = "", *, by: str | None = None) -> StopInfo:
        """Ask the trainers of a running job to stop, and return the request (docs/stop.md).

        They end by themselves, once they have received it; a second request changes nothing. `by` is the name of
        who asks, by default the user of this process; a gateway with tokens takes the token's name. Raises
        `ClientError` if the job has ended.
        """
        return self._source.stop(self.id, by, reason)

    def metrics(
        self, names: str | list[str] | tuple[str, ...] = (), *, every_point: Literal[True] = True
    ) -> Metrics:
        """Return all points of these metrics, by default of all; they are never sampled.

        `every_point` documents that in code that reads it; no other value exists.
        """
        if every_point is not True:
            raise ClientError(f"every_point={every_point!r}: all points are returned; write True or leave it out")
        wanted = [names] if isinstance(names, str) else list(names)
        if wrong := [name for name in wanted if "," in name]:
            raise ClientError(f"names={wrong[0]!r}: give a list of names, each without a comma")
        stored = [COLUMN_OF[name] for name in wanted if name in COLUMN_OF]
        return Metrics(self.id, self._source.metrics(self.id, [*wanted, *stored]))

    def logs(
        self,
        *,
        log_type: Literal["stdout", "stderr"] | None = None,
        level: str | None = None,
        rank: int | None = None,
        attempt: int | None = None,
        search: str | None = None,
        after: int = 0,
    ) -> Iterator[LogLine]:
        """Yield all matching lines that are there now, in order and whole; pages are read as they are needed.

        `search` ignores case; `after` is the `seq` of the line before the first.
        """
        query = LogQuery(log_type, level, rank, attempt, search)
        following: int | None = after
        while following is not None:
            page = self._source.logs(self.id, query, following)
            yield from page.lines
            following = page.after

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return all checkpoints, in the order in which they were stored."""
        return self._source.checkpoints(self.id)

    def download(self, which: str | int = "best", *, to: str | Path | None = None, force: bool = False) -> Path:
        """Download the file of a checkpoint, `best`, `last` or its `seq`; return its path.

        Size and SHA-256 are checked where they are recorded. `to` is a file or a folder, by default this folder;
        an existing file is replaced with `force` only. Raises `ClientError`, and then leaves no file.
        """
        chosen = self._chosen(which)
        return fetch(self._source.checkpoint_url(self.id, chosen.seq), chosen, to, force=force)

    def follow(self) -> Iterator[dict[str, Any]]:
        """Return the events of the job until it has ended: a `snapshot`, then new rows (docs/feed.md).

        A connection that ends is made again, and goes on where it was. Needs a gateway.
        """
        return self._source.follow(self.id)

    def _chosen(self, which: str | int) -> CheckpointInfo:
        found = self.checkpoints()
        if which in ("best", "last"):
            named = [each for each in found if (each.is_best if which == "best" else each.is_last)]
        elif str(which).isdecimal():
            named = [each for each in found if each.seq == int(which)]
        else:
            raise ClientError(f"{which!r} is no checkpoint: write 'best', 'last' or the seq of one")
        if not named:
            seqs = ", ".join(str(each.seq) for each in found[-10:]) or "none"
            raise ClientError(f"job {self.id} has no checkpoint {which!r}: its newest are {seqs}")
        return named[-1]
