"""Jobs by name, by the beginning of a name or number, and the newest one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, insert

from tests.integration.cli.conftest import Trainwire
from trainwire.ingest.identity.job_numbers import number_of
from trainwire.schemas.tables import training_jobs, training_logs

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "<b>x</b> \x1b[2Jend"


def add(engine: Engine, *jobs: tuple[int, str | None]) -> None:
    """Store jobs, each newer than the one before, with a log line that has its number."""
    rows = [
        {"id": job_id, "name": name, "created_at": AT + timedelta(seconds=index), "last_log_seq": 1}
        for index, (job_id, name) in enumerate(jobs)
    ]
    same = {"seq": 1, "logged_at": AT, "attempt": 1, "logged_ns": 0, "source": "0-a", "log_type": "stdout"}
    with engine.begin() as connection:
        connection.execute(insert(training_jobs), rows)
        connection.execute(
            insert(training_logs), [{"job_id": job_id, "content": f"of {job_id}", **same} for job_id, _ in jobs]
        )


MADE = 281_201_398_705_541_189


@pytest.fixture
def jobs(engine: Engine) -> None:
    """Store some jobs."""
    add(
        engine,
        (MADE, "train-brisk-otter-42"),
        (MADE + 10**12, "train-calm-owl-07"),
        (42, "2024"),
        (43, "digits"),
        (44, "two words"),
        (45, HOSTILE),
        (46, None),
        (2024, "digits"),
        (47, "42"),
    )


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("reference", "job_id"),
    [
        ("42", 42),  # also where another job is called so
        ("2024", 2024),
        (str(MADE), MADE),
        (str(MADE)[:7], MADE),
        ("train-brisk-otter-42", MADE),
        ("train-b", MADE),
        ("two words", 44),
        (HOSTILE, 45),
        ("last", 47),
    ],
)
def test_a_job_has_many_names(connected: Trainwire, reference: str, job_id: int) -> None:
    """A number, a name, an unambiguous beginning of either, and `last` are references to a job."""
    printed = connected("logs", reference)
    assert (printed.code, printed.out.split(" stdout ")[-1]) == (0, f"of {job_id}\n")
    for command in (("status",), ("metrics",), ("checkpoints",)):
        assert connected(*command, reference).code == 0
    assert f"job {job_id}" in connected("delete", "--dry-run", reference).out


@pytest.mark.usefixtures("jobs")
def test_the_last_digits_of_a_made_number_are_a_reference(connected: Trainwire, engine: Engine) -> None:
    """Made numbers begin alike, so lists show their ends, which commands and the search accept."""
    add(engine, (MADE + 7, None), (70_123_456, None))
    ending = str(MADE + 7)[-7:]
    assert connected("logs", ending).out.endswith(f"of {MADE + 7}\n")
    assert connected("jobs", "--search", ending, "--json").out.count('"id"') == 1
    assert f"2 jobs fit '{str(MADE)[-7:]}'" in connected("status", str(MADE)[-7:]).err
    assert "no job 123456" in connected("status", "123456").err
    assert f"no job {ending}" in connected("delete", ending, "--yes").err


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("", "the job's name is empty"),
        ("digi", "2 jobs fit 'digi'"),
        ("nobody", "no job 'nobody' in the database"),
        ("4", "no job 4 in the database"),  # small numbers are never abbreviated
        ("28", "no job 28 in the database"),
        ("0", "no job '0' in the database"),
        ("9" * 30, "no job '999"),
        ("%", "no job '%'"),
        ("_", "no job '_'"),
    ],
)
def test_a_wrong_job_reference_is_named(connected: Trainwire, reference: str, sentence: str) -> None:
    """A reference to no job, or to several, is one error with the remedy."""
    refused = connected("status", reference)
    assert (refused.code, refused.out) == (1, "")
    assert sentence in refused.err


def test_candidates_are_listed_the_newest_first(engine: Engine, connected: Trainwire) -> None:
    """A name that thousands of jobs have lists the newest ten, and how to choose one; `last` is the newest."""
    numbers = [number_of(f"sweep {index}") for index in range(2000)]
    add(engine, *((job_id, "sweep") for job_id in numbers))
    refused = connected("status", "sweep")
    first, *lines, last = refused.err.splitlines()
    assert first == "trainwire: 2,000 jobs fit 'sweep': choose one by its number, the newest first"
    assert [int(line.split()[0]) for line in lines] == numbers[:-11:-1]
    assert last.strip().startswith("and 1,990 more")
    assert f"of {numbers[-1]}" in connected("logs", "last").out
    assert connected("jobs", "--name", "swee", "--limit", "3").out.count("sweep") == 3


@pytest.mark.usefixtures("jobs")
def test_a_deletion_without_a_question_needs_the_full_name(connected: Trainwire) -> None:
    """With --yes a job is not named by the beginning of its name or number."""
    for abbreviation in ("train-b", str(MADE)[:7]):
        refused = connected("delete", abbreviation, "--yes", "--force")
        assert refused.code == 1
        assert "in the database" in refused.err
    assert connected("delete", "two words", "--yes", "--force").code == 0


def test_without_jobs_there_is_no_last(connected: Trainwire) -> None:
    """`last` in an empty database is an error."""
    assert connected("logs", "last").err == "trainwire: no jobs yet: `trainwire run -- COMMAND` makes one\n"
