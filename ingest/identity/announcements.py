"""Prints a line to stderr at the start of a job: its name, and the address of its page."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from trainwire.ingest.identity.open_runs import JobNumber
from trainwire.ingest.servers.destinations import page_url_of
from trainwire.ingest.settings.trainer_settings import TrainerSettings


def page_of_job(settings: TrainerSettings, job_id: int) -> str | None:
    """Return the address of a job's page; None if the address of the web page is unknown."""
    page_url = page_url_of(settings)
    return None if page_url is None else f"{page_url.rstrip('/')}/#/jobs/{job_id}"


def announce(settings: TrainerSettings, number: JobNumber, name: str | None, rank: int | None) -> None:
    """Print the name of a job and the address of its page to stderr.

    Nothing is printed if the setting `quiet` is on or the rank is above 0. If the address of the page is unknown,
    only `trainwire run` prints the name, and only if trainwire has made the job number.
    """
    if settings.quiet or rank:
        return
    job_id, is_made = number
    address = page_of_job(settings, job_id)
    if address is None and not (is_made and settings.vitals.is_launcher):
        return
    named = f"job {job_id}" if name is None else f"{one_line(name)} (job {job_id})"
    print_note(named if address is None else f"{named}: {address}")


def one_line(name: str) -> str:
    """Return `name` with control characters, which a terminal would interpret, replaced by U+FFFD."""
    return "".join(char if char.isprintable() else "\ufffd" for char in name)


def print_note(sentence: str) -> None:
    """Write a sentence to stderr; do nothing if stderr is closed or missing."""
    line = f"trainwire: {sentence}\n"
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
        try:
            descriptor = sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):  # a notebook's stream
            sys.stderr.write(line)
        else:  # past its buffer: buffered text that cannot be written changes the exit code at the end
            os.write(descriptor, line.encode(errors="backslashreplace"))
