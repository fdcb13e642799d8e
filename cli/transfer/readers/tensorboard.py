"""Reads runs from a folder of TensorBoard event files (docs/import-export.md)."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from trainwire.cli.transfer.readers.event_records import FRAME_BYTES, records
from trainwire.cli.transfer.readers.scalar_events import ScalarDecoder
from trainwire.cli.transfer.runs import (
    MAX_NS,
    OUT_OF_RANGE,
    End,
    Header,
    Item,
    LeftOut,
    Line,
    Params,
    SourceRun,
    Tally,
    content_hash,
    files_below,
    unreadable,
)
from trainwire.ingest.hooks.event_files import PATTERN
from trainwire.ingest.hooks.tensorboard_events import (
    SPLITS,
    DamagedEventError,
    Event,
    metric_prefix,
)
from trainwire.schemas.wire.messages import Point
from trainwire.stack.errors import Problem


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    prefix: str
    """Prefix for the names of the file's metrics (`metric_prefix`)."""


def tensorboard_runs(folder: Path, name: str | None, copy: str) -> Iterator[SourceRun | LeftOut]:
    """Yield the runs below a folder; one whose files are empty or cannot be read becomes a `LeftOut`.

    `name` replaces the name of a single run, and `copy` becomes part of each run's identity. Raises `Problem` if
    the folder does not exist or contains no event file, or if `name` is given and there are several runs.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise Problem(f"{folder} is not a folder: give the folder that `tensorboard --logdir` gets")
    found = _event_files(folder)
    if not found:
        raise Problem(
            f"no event file ({PATTERN}*) below {folder}: give the folder that `tensorboard --logdir` gets"
        )
    if name is not None and len(found) > 1:
        raise Problem(f"--name is for one run, and {folder} has {len(found):,}: give the folder of one of them")
    for root, paths in sorted(found.items()):
        yield _run(folder, root, paths, name, copy)


def _event_files(folder: Path) -> dict[Path, list[Path]]:
    """Return a map from the folder of each run to its event files.

    The topmost folder with event files is one run, together with all folders below it. If such a folder is named
    after a part of a data set (`train`, `validation` ...), its parent is the run.
    """
    runs: dict[Path, list[Path]] = defaultdict(list)
    for here, files in groupby(
        files_below(folder, lambda name: name.startswith(PATTERN)), lambda file: file.parent
    ):
        above = [root for root in (here, *here.parents) if root in runs]
        is_part = here != folder and here.name in SPLITS
        runs[above[-1] if above else here.parent if is_part else here] += files
    return dict(runs)


def _run(folder: Path, root: Path, paths: list[Path], name: str | None, copy: str) -> SourceRun | LeftOut:
    inside = str(root.relative_to(folder))
    shown = name or (folder.name if inside == "." else inside)
    digest = hashlib.blake2b(digest_size=16)
    files = []
    for path in paths:
        try:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(root)} {size} {content_hash(path, size)}\n".encode(errors="replace"))
        except OSError as exc:
            return unreadable(path, exc)
        files.append(_File(path, size, metric_prefix(path.parent.relative_to(root))))

    if not any(file.size for file in files):
        return LeftOut(shown, "its event files are empty")

    def items(tally: Tally) -> Iterator[Item]:
        yield from _items(root, files, shown, tally)

    return SourceRun(tool="tensorboard", identity=f"{root} {digest.hexdigest()} {copy}", name=shown, items=items)


def _items(root: Path, files: list[_File], name: str, tally: Tally) -> Iterator[Item]:
    started_ns, last_ts = None, 0
    params: dict[str, Any] = {}
    tally.share = lambda: tally.read_bytes / max(sum(file.size for file in files), 1)
    for file in files:
        for event in _events(file, tally):
            if started_ns is None:
                started_ns = event.ts
                yield Header(name=name, started_ns=started_ns, tags={"imported_from": f"tensorboard {root}"})
            last_ts = max(last_ts, event.ts)
            if isinstance(event, Point):
                yield event
            else:
                yield from _event_items(file.prefix, event, params, tally)
    if started_ns is None:
        yield Header(name=name, started_ns=None)
    yield End(ts=last_ts or files[-1].path.stat().st_mtime_ns)


def _event_items(prefix: str, event: Event, params: dict[str, Any], tally: Tally) -> Iterator[Item]:
    """Yield the points and texts of an event and, if it has parameters, all parameters read so far.

    `params` holds those; the parameters of the event are added to it. Values of other kinds are counted as skipped
    in `tally`.
    """
    if event.scalars:
        yield from _points(prefix, event, tally)
    if event.params:
        params |= event.params
        yield Params(dict(params))
    for tag, text in event.texts:
        line = f"{prefix}{tag} (step {event.step}): {text}"
        if tally.fits(line):
            yield Line(event.ts, line)
    for kind in event.not_taken:
        tally.skip("points", f"{kind}: not a number")


def _events(file: _File, tally: Tally) -> Iterator[Event | Point]:
    decoder = ScalarDecoder(file.prefix)
    try:
        for data in records(file.path, file.size):
            tally.read_bytes += len(data) + FRAME_BYTES
            event = decoder.decode(data)
            if not 0 <= event.ts <= MAX_NS:
                values = event.values if isinstance(event, Point) else event.scalars
                tally.skip("points", OUT_OF_RANGE, len(values))
                continue
            yield event
    except (DamagedEventError, OSError) as exc:
        tally.fail_within(file.path, exc)
    else:
        tally.taken["files"] += 1


def _points(prefix: str, event: Event, tally: Tally) -> Iterator[Point]:
    values = event.scalars
    if prefix:
        values = {prefix + tag: number for tag, number in values.items()}
    if values := tally.named(values):
        yield Point(ts=event.ts, step=event.step, values=values)
