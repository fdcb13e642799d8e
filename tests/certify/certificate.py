"""Writes the findings of a certification: docs/certificate.md, and the list of call sites beside this module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.certify.call_sites import LOCAL, call_sites
from tests.certify.failpoints import ROOT
from tests.certify.results import Results, Row

LIST: Final = Path(__file__).with_name("call_sites.txt")
DOCUMENT: Final = ROOT / "docs" / "certificate.md"
REACHED, NOT_YET, LOCALLY = "reached", "not yet", "local"
_BEGIN: Final = "<!-- begin: python -m tests.certify --certificate -->"
_END: Final = "<!-- end -->"
_SUM: Final = "all"


def listed_sites() -> dict[str, str]:
    """Return {call site: state} of the list; {} without a list."""
    lines = LIST.read_text().splitlines() if LIST.exists() else []
    return {site: state for state, _, site in (line.partition("\t") for line in lines)}


def write_certificate(results: Results) -> None:
    """Add `results` to the table in docs/certificate.md, and to the list of call sites.

    A row of the table is replaced by one with as many runs or with a failure; a call site once reached stays so.
    """
    reached = results.sites() | {name_of(call) for call in results.calls()}
    reached |= {site for site, state in listed_sites().items() if state == REACHED}
    sites = sorted(set(call_sites()))
    local = {site for group in LOCAL.values() for site in group}
    states = {site: REACHED if site in reached else LOCALLY if site in local else NOT_YET for site in sites}
    LIST.write_text("".join(f"{state}\t{site}\n" for site, state in states.items()))
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    table, _, after = rest.partition(_END)
    rows = _rows_of(table)
    for row in results.table():
        if row.scenario not in rows or row.runs >= rows[row.scenario].runs or row.failures:
            rows[row.scenario] = row
    DOCUMENT.write_text("\n".join([f"{before}{_BEGIN}", "", *_table(rows, states), "", f"{_END}{after}"]))


def name_of(call: str) -> str:
    """Return the call site (`file.py:function`) of a recorded call (`edge folder/file.py:function`)."""
    place = re.sub(r"\.<(locals|listcomp|genexpr|setcomp|dictcomp|lambda)>", "", call.partition(" ")[2])
    return place.rpartition("/")[2]


def _rows_of(table: str) -> dict[str, Row]:
    """Return the rows of a table by scenario, without the sum."""
    found = re.findall(r"^\| ([\w-]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", table, re.MULTILINE)
    return {
        name: Row(name, *(int(number.replace(",", "")) for number in numbers))
        for name, *numbers in found
        if name != _SUM
    }


def _table(rows: dict[str, Row], states: dict[str, str]) -> Iterator[str]:
    yield "| scenario | different calls | runs with a failed call | failures |"
    yield "|---|---:|---:|---:|"
    for _, row in sorted(rows.items()):
        yield f"| {row.scenario} | {row.calls} | {row.runs:,} | {row.failures} |"
    runs, failures = (sum(getattr(row, name) for row in rows.values()) for name in ("runs", "failures"))
    yield f"| {_SUM} | | {runs:,} | {failures} |"
    count = Counter(states.values())
    yield ""
    yield (
        f"Functions of the product that make such calls: {len(states)}, of which {count[REACHED]} have failed "
        f"in a run, {count[LOCALLY]} reach no store, and {count[NOT_YET]} are not certified yet."
    )
