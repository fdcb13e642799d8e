"""All of trainwire is imported as `trainwire.…`: a module imported by two names would exist twice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {path.name: path.readlink() for path in (ROOT / "trainwire").iterdir() if path.is_symlink()}
EXPECTED = ("cli", "client", "gateway", "ingest", "schemas", "stack", "stores", "workers")
SOURCES = [
    path
    for folder in (*FOLDERS, "trainwire", "tests", "benchmarks", "docs/site")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
TEXTS = [
    *(path for pattern in ("*.md", "*.y*ml", "*.toml", "Makefile", ".ci/run") for path in ROOT.glob(pattern)),
    *(
        path
        for folder in ("docs", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".md", ".yaml"}
    ),
    ROOT / "deploy" / "Dockerfile",
]
BARE = "|".join(FOLDERS)
OLD_NAME = re.compile(rf"\b(?:from|import) (?:{BARE})(?:\.\w| import\b)|-m[\s\",']+(?:{BARE})\b")


def test_the_package_has_a_link_to_each_folder() -> None:
    """`trainwire/ingest` is the folder `ingest` beside it, and so for all."""
    assert {name: Path("..", name) for name in EXPECTED} == FOLDERS


def old_imports(source: str) -> Iterator[str]:
    """Yield the names that a module imports from our packages without the prefix `trainwire`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.split(".")[0] in FOLDERS)


def test_no_module_uses_an_old_name() -> None:
    """Neither an import, nor code and commands in strings and comments."""
    for path in SOURCES:
        source = path.read_text()
        found = [] if path == Path(__file__) else OLD_NAME.findall(source)
        assert [*old_imports(source), *found] == [], path


def test_no_text_shows_an_old_name() -> None:
    """Commands in documents and deployment files use the names under `trainwire`, so that copies of them run."""
    assert {path: found for path in TEXTS if (found := OLD_NAME.findall(path.read_text()))} == {}


@pytest.mark.parametrize(
    "old", ["from ingest import Run", "import workers.app", '[executable, "-m", "workers"]', "python, -m, gateway"]
)
def test_old_names_are_found(old: str) -> None:
    """The pattern of the tests above finds old names."""
    assert OLD_NAME.search(old)
