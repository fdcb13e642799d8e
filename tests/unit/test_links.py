"""Every link of every Markdown file leads to an existing file and heading."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OURS = ("build", "dist")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(`+)[^`].*?\1", re.DOTALL)
LINK = re.compile(
    r"\]\(<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE
)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def _documents() -> list[Path]:
    folders = (path for path in ROOT.iterdir() if path.is_dir() and path.name not in NOT_OURS)
    ours = (path for path in folders if not path.name.startswith("."))
    return sorted([*ROOT.glob("*.md"), *(document for folder in ours for document in folder.rglob("*.md"))])


def _links(text: str) -> list[str]:
    prose = INLINE_CODE.sub("", FENCED.sub("", text))
    found = ["".join(groups) for groups in LINK.findall(prose)]
    return [target for target in found if not ELSEWHERE.match(target)]


@cache
def _anchors(document: Path) -> frozenset[str]:
    """Return the names that GitHub gives to the headings of a document."""
    text = FENCED.sub("", document.read_text())
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return frozenset(anchors)


def _is_broken(document: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    leads_to = (document.parent / path).resolve() if path else document
    if not leads_to.exists() or not leads_to.is_relative_to(ROOT):
        return True
    return bool(anchor) and (leads_to.suffix != ".md" or anchor not in _anchors(leads_to))


@pytest.mark.parametrize("document", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document is a file or folder of the repository, every anchor a heading."""
    assert [target for target in _links(document.read_text()) if _is_broken(document, target)] == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A missing file or heading and a file outside are broken links; code, URLs and existing targets are not."""
    text = '[a](no.md) [b](README.md#no) [c](#no) ![d](docs/no.svg)\n\n[e]: no.txt\n\n<img src="no.png">\n'
    fine = "[a](README.md#try-it) `[b](no.md)` <!-- --> [c](http://no.example)\n\n```\n[d](no.md)\n```\n"
    readme = ROOT / "README.md"
    assert [_is_broken(readme, target) for target in _links(text)] == [True] * 6
    assert _links(fine) == ["README.md#try-it"]
    assert not _is_broken(readme, "README.md#try-it")
    assert _is_broken(readme, str(tmp_path))


def test_every_decision_is_listed() -> None:
    """docs/decisions/README.md, which leads to them on the site, has each decision."""
    folder = ROOT / "docs" / "decisions"
    listed = set(_links((folder / "README.md").read_text()))
    assert {path.name for path in folder.glob("0*.md")} <= listed
