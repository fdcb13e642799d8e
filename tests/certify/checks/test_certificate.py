"""The certificate keeps what earlier certifications have found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certify import certificate
from tests.certify.results import Result, Results

CALL = "file.mkdir ingest/spool/folder.py:SourceFolder.create"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a certificate of an earlier machine, with its list of call sites."""
    monkeypatch.setattr(certificate, "LIST", tmp_path / "call_sites.txt")
    monkeypatch.setattr(certificate, "DOCUMENT", tmp_path / "certificate.md")
    (tmp_path / "call_sites.txt").write_text("reached\tfolder.py:SourceFolder.remove\n")
    rows = "| deleted | 3 | 1,004 | 0 |\n| failed | 4 | 1 | 0 |\n| all | 131 | 1,005 | 0 |"
    (tmp_path / "certificate.md").write_text(
        f"before\n{certificate._BEGIN}\n\n| scenario | calls |\n{rows}\n\n{certificate._END}\nafter\n"
    )
    return tmp_path


def run(scenario: str, number: int = 1, problems: list[str] | None = None) -> Result:
    """Return the result of a run in which `mkdir` failed."""
    sites = ["folder.py:SourceFolder.create"]
    return Result(scenario, "trainer", "refused", number, CALL, problems or [], 1.0, sites)


def written(files: Path, *results: Result) -> str:
    """Write the certificate of these results, and return its text."""
    found = Results(files / "results.jsonl")
    for result in results:
        found.add(result)
    found.reload()
    certificate.write_certificate(found)
    return (files / "certificate.md").read_text()


def test_a_larger_certification_remains(files: Path) -> None:
    """Rows with more runs than the present results stay; others are replaced, and new ones added."""
    text = written(files, run("deleted"), run("failed"), run("failed", 2), run("new"))
    assert (
        "| deleted | 3 | 1,004 | 0 |\n| failed | 1 | 2 | 0 |\n| new | 1 | 1 | 0 |\n| all | | 1,007 | 0 |" in text
    )
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


def test_a_failure_is_never_hidden(files: Path) -> None:
    """A row with a failure replaces one with more runs."""
    assert "| deleted | 1 | 1 | 1 |" in written(files, run("deleted", problems=["lines: lost"]))


def test_a_call_site_once_reached_stays_so(files: Path) -> None:
    """The list has the call sites of the present results and of earlier ones."""
    written(files, run("new"))
    states = certificate.listed_sites()
    assert states["folder.py:SourceFolder.remove"] == states["folder.py:SourceFolder.create"] == "reached"
    assert states["folder.py:SourceFolder.remove"] != states["spool.py:Spool.note_drops"]
