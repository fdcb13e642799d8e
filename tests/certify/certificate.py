"""Writes the findings of a certification: docs/certificate.md, and the list of call sites beside this module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.certify.call_sites import call_sites
from tests.certify.failpoints import ROOT
from tests.certify.results import Results

LIST: Final = Path(__file__).with_name("call_sites.txt")
DOCUMENT: Final = ROOT / "docs" / "certificate.md"
REACHED, NOT_YET = "reached", "not yet"
_BEGIN: Final = "<!-- begin: python -m tests.certify --certificate -->"
_END: Final = "<!-- end -->"


def listed_sites() -> dict[str, str]:
    """Return {call site: state} of the list, where the state is REACHED or NOT_YET; {} without a list."""
    lines = LIST.read_text().splitlines() if LIST.exists() else []
    return {site: state for state, _, site in (line.partition("\t") for line in lines)}


def write_certificate(results: Results) -> None:
    """Replace the table in docs/certificate.md and the list of call sites by those of `results`."""
    reached = {name_of(call) for call in results.sites()}
    sites = sorted(set(call_sites()))
    states = {site: REACHED if site in reached else NOT_YET for site in sites}
    LIST.write_text("".join(f"{state}\t{site}\n" for site, state in states.items()))
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    DOCUMENT.write_text("\n".join([f"{before}{_BEGIN}", "", *_table(results, states), "", f"{_END}{after}"]))


def name_of(call: str) -> str:
    """Return the call site (`file.py:function`) of a recorded call (`edge folder/file.py:function`)."""
    place = re.sub(r"\.<(locals|listcomp|genexpr|setcomp|dictcomp|lambda)>", "", call.partition(" ")[2])
    return place.rpartition("/")[2]


def _table(results: Results, states: dict[str, str]) -> Iterator[str]:
    yield "| scenario | different calls | runs with a failed call | failures |"
    yield "|---|---:|---:|---:|"
    total = [0, 0]
    for scenario, calls, runs, failures in results.table():
        total = [total[0] + runs, total[1] + failures]
        yield f"| {scenario} | {calls} | {runs:,} | {failures} |"
    yield f"| all | {len(results.sites())} | {total[0]:,} | {total[1]} |"
    reached = sum(state == REACHED for state in states.values())
    yield ""
    yield f"Functions of the product that make such calls: {len(states)}, of which {reached} have failed in a run."
