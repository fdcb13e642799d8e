"""Imports runs of other tools one after another, and compares them with their rows in Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from trainwire.cli.transfer.import_report import ImportReport, report_of, run_report
from trainwire.cli.transfer.messages import messages_of
from trainwire.cli.transfer.runs import LeftOut, SourceRun, Tally, UnreadableRun
from trainwire.cli.transfer.sending import Sender
from trainwire.stores.postgres.deletion import deleted_among

OnProgress = Callable[[str, int, Callable[[], float | None]], None]


@dataclass
class _Read:
    run: SourceRun
    tally: Tally
    sent: int


def import_runs(
    runs: Iterable[SourceRun | LeftOut],
    connection: Connection,
    sender: Sender | None,
    on_progress: OnProgress,
) -> ImportReport:
    """Send the messages of all runs that are not stored yet, and return the comparison with Postgres.

    If `sender` is None, the runs are only read and compared. `connection` is in autocommit mode. `on_progress` is
    called with the name of a run, the number of points read, and a function that returns the share of the run that
    was read.
    """
    left_out: list[LeftOut] = []
    read: list[_Read] = []
    for run in runs:
        if isinstance(run, LeftOut):
            left_out.append(run)
        else:
            try:
                read.append(_read(run, connection, sender, on_progress))
            except UnreadableRun as exc:
                left_out.append(LeftOut(run.name, str(exc), is_failure=True))
    if sender is not None:
        sender.finish()
    reports = (run_report(connection, each.run, each.tally, each.sent) for each in read)
    return report_of(reports, left_out)


def _read(run: SourceRun, connection: Connection, sender: Sender | None, on_progress: OnProgress) -> _Read:
    read = _Read(run, Tally(), 0)
    was_deleted = bool(deleted_among(connection, [run.job_id]))
    stored = {} if sender is None else sender.positions(run.job_id, run.source)
    for message in messages_of(run, read.tally):
        on_progress(run.name, read.tally.taken["points"], read.tally.share)
        if sender is None or was_deleted or message.seq <= stored.get(message.kind, 0):
            continue
        sender.send(message)
        read.sent += 1
    return read
