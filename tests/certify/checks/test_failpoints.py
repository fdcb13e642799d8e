"""A failpoint lets one chosen call of the product fail, and no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.certify.audit import _of_rows
from tests.certify.call_sites import sites_of
from tests.certify.failpoints import Failpoints, Failure, Mode, install
from trainwire.ingest.spool.folder import About, SourceFolder, source_folders

ABOUT = About(7, 1, "0-test", None, "redis:6379/0")
FAILS, KILLED = 3, -9


def in_child(
    tmp_path: Path, failure: Failure | None, run: Callable[[], object], armed_by: Path | None = None
) -> int:
    """Run a function with failpoints in a child process, and return its exit code: 3 after an `OSError`."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            points = Failpoints(tmp_path / "calls.tsv", failure, armed_by)
            install(points)
            points.role = "trainer"
            run()
        except OSError:
            code = FAILS
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("mode", "code", "is_made"),
    [
        ("refused", FAILS, False),
        ("answer-lost", FAILS, True),
        ("hanging", FAILS, False),
        ("killed-before", KILLED, False),
        ("killed-after", KILLED, True),
    ],
)
def test_a_call_fails_before_or_after_its_effect(tmp_path: Path, mode: Mode, code: int, is_made: bool) -> None:
    """The second `mkdir` of the product, of a source's folder, fails in each way, and is recorded."""
    made = in_child(tmp_path, Failure("trainer", 2, mode), lambda: SourceFolder.create(tmp_path / "spool", ABOUT))
    assert made == code
    assert (tmp_path / "spool" / "7-0-test").is_dir() == is_made
    recorded = (tmp_path / "calls.tsv").read_text().splitlines()
    assert recorded[1].startswith("FAILED\ttrainer\tfile.mkdir ingest/spool/folder.py:SourceFolder.create\t")


def test_only_calls_of_the_chosen_site_count(tmp_path: Path) -> None:
    """With a call site, the number counts its calls alone, also those beyond the ones that count otherwise."""
    site = "folder.py:SourceFolder.create"
    spool = tmp_path / "spool"

    def run() -> None:
        for number in range(9):
            source_folders(spool)
            SourceFolder.create(spool, replace(ABOUT, source=f"{number}-test"))

    assert in_child(tmp_path, Failure("trainer", 7, "refused", site), run) == FAILS
    failed = [line for line in (tmp_path / "calls.tsv").read_text().splitlines() if line.startswith("FAILED")]
    assert sites_of(failed[0].split("\t")[3].split()) == [site]


def test_calls_beyond_the_last_one_and_of_other_programs_do_not_fail(tmp_path: Path) -> None:
    """A failure of a call that a run does not reach changes nothing; calls of tests and libraries do not count."""

    def run() -> None:
        (tmp_path / "mine").mkdir()
        SourceFolder.create(tmp_path / "spool", ABOUT)

    assert in_child(tmp_path, Failure("trainer", 100, "refused"), run) == 0
    assert (tmp_path / "spool" / "7-0-test" / "source.json").exists()
    recorded = (tmp_path / "calls.tsv").read_text()
    assert "FAILED" not in recorded
    assert "mine" not in recorded
    assert "test_failpoints" not in recorded


def test_no_call_counts_before_the_run_is_armed(tmp_path: Path) -> None:
    """Calls count once the file of the story exists; earlier ones are neither recorded nor failed."""
    armed = tmp_path / "armed"

    def run() -> None:
        SourceFolder.create(tmp_path / "early", ABOUT)
        armed.touch()
        SourceFolder.create(tmp_path / "late", ABOUT)

    assert in_child(tmp_path, Failure("trainer", 1, "refused"), run, armed) == FAILS
    assert (tmp_path / "early" / "7-0-test").is_dir()
    state, _, call, callers = (tmp_path / "calls.tsv").read_text().splitlines()[0].split("\t")
    assert (state, call) == ("FAILED", "file.mkdir ingest/spool/folder.py:SourceFolder.create")
    assert sites_of(callers.split()) == ["folder.py:SourceFolder.create"]


@pytest.mark.parametrize(
    ("found", "was_killed", "is_wrong"),
    [
        ([1, 2, 3], False, False),
        ([1, 2], False, True),
        ([1, 2], True, False),
        ([2, 3], True, True),
        ([1, 3, 2], False, True),
        ([1, 2, 2, 3], True, True),
    ],
)
def test_the_audit_finds_lost_doubled_and_exchanged_rows(
    found: list[int], was_killed: bool, is_wrong: bool
) -> None:
    """Of a killed trainer the last rows may be lacking, and none else; of others none."""
    assert bool([*_of_rows("rows", found, [1, 2, 3], was_killed=was_killed)]) == is_wrong
