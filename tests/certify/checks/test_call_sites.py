"""Every function that makes a call out of its process is known to the certification."""

from __future__ import annotations

from tests.certify.call_sites import LOCAL, call_sites, sites_of
from tests.certify.certificate import NOT_YET, listed_sites, name_of
from tests.certify.failpoints import ROOT

REMEDY = (
    "run `make certify`, then `python -m tests.certify --certificate`; if no scenario reaches them, extend one in "
    "tests/certify/scenarios.py"
)
MOST_NOT_YET = 51
"""Number of call sites that no scenario reaches yet; lower it with each scenario, and never raise it."""


def test_new_call_sites_have_a_failpoint() -> None:
    """A function with a new call to Redis, Postgres, HTTP, S3 or a file is not forgotten by the certification."""
    new = set(call_sites()) - listed_sites().keys()
    assert not new, f"no failpoint was reached in {sorted(new)}: {REMEDY}"


def test_few_call_sites_are_not_certified() -> None:
    """The part of the product that no scenario reaches does not grow."""
    present = set(call_sites())
    not_yet = [site for site, state in listed_sites().items() if state == NOT_YET and site in present]
    assert len(not_yet) <= MOST_NOT_YET, REMEDY


def test_local_calls_exist() -> None:
    """A function that is excepted, because its calls reach no store, exists and makes such a call."""
    assert {site for group in LOCAL.values() for site in group} <= set(call_sites())


def test_only_callers_whose_own_call_has_failed_count() -> None:
    """Of the functions that a failed call goes through, those count that made it, or called a client of ours."""
    place = "ingest/spool/folder.py"
    lines = (ROOT / place).read_text().splitlines()
    made = next(number for number, line in enumerate(lines, 1) if " path.mkdir(" in line)
    assert sites_of([f"{place}:{made}"]) == ["folder.py:SourceFolder.create"]
    assert sites_of([f"{place}:1", f"gateway/app.py:{made}"]) == []


def test_calls_are_named_by_their_function() -> None:
    """A call in a comprehension or a nested function belongs to the function around it."""
    recorded = "file.listdir ingest/spool/folder.py:SourceFolder.remove.<locals>.<listcomp>"
    assert name_of(recorded) == "folder.py:SourceFolder.remove"
