"""Tests of the documents: the tests, files and commands that they name exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from trainwire.gateway.settings import GatewaySettings
from trainwire.ingest.process import ranks as ingest_ranks
from trainwire.ingest.provenance import collector
from trainwire.ingest.settings import setting_groups, trainer_settings, variables
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import sink_settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_exist(document: Path) -> None:
    """Every test and test file that a document names exists."""
    for name in re.findall(r"`(test_\w+)`", document.read_text()):
        assert f"def {name}(" in TESTS, name
    for path in re.findall(r"`(tests/[\w/.]+)`", document.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", ["docs/architecture.md", "docs/extend.md", "CONTRIBUTING.md"])
def test_named_files_exist(document: str) -> None:
    """Each path exists: from the root, or from a folder of the path before it in the same section."""
    for section in (ROOT / document).read_text().split("\n### "):
        folder = ROOT
        for name in re.findall(r"`([\w./]+(?:\.py|\.yaml|/))`", section):
            places = [place / name for place in (folder, *folder.parents) if place.is_relative_to(ROOT)]
            found = next((place for place in places if place.exists()), None)
            assert found is not None, name
            folder = found if found.is_dir() else found.parent


def test_every_setting_is_documented() -> None:
    """Each variable of workers, gateway and trainers has its line in docs/settings.md, and no other has."""
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs" / "settings.md").read_text()))
    of_sinks = [name for kind in sink_settings() for name in kind.model_fields]
    workers = {name.upper() for name in (*Settings.model_fields, *GatewaySettings.model_fields, *of_sinks)}
    of_trainers = (trainer_settings, setting_groups, variables, ingest_ranks, collector)
    source = "".join(Path(str(module.__file__)).read_text() for module in of_trainers)
    names = "TRAINWIRE|REDIS|STREAMS|RANK|WORLD_SIZE|OMPI|PMI|SLURM"
    trainers = set(re.findall(rf'"((?:{names})[A-Z_]*)"', source))
    others = {"TRAINWIRE_DATA_DIR", "FLOWER_USER", "FLOWER_PASSWORD", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert workers | trainers | others == documented


def test_every_make_target_of_the_documents_exists() -> None:
    """`make something` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"(?:`|^)make ([a-z]+)", document.read_text(), flags=re.MULTILINE)) <= targets


def test_the_page_of_commands_is_the_output_of_help() -> None:
    """docs/cli.md equals the output of `python docs/site/cli.py`."""
    page = runpy.run_path(str(ROOT / "docs" / "site" / "cli.py"))["page"]
    assert (ROOT / "docs" / "cli.md").read_text() == page()


def test_the_public_interfaces_are_those_that_are_promised() -> None:
    """docs/interfaces.txt equals the output of `python docs/site/interfaces.py`."""
    page = runpy.run_path(str(ROOT / "docs" / "site" / "interfaces.py"))["page"]
    assert (ROOT / "docs" / "interfaces.txt").read_text() == page()


def test_the_readme_is_short() -> None:
    """The README has at most 500 words, and the glossary at most 40 terms."""
    assert len((ROOT / "README.md").read_text().split()) <= 500
    assert len(re.findall(r"^\| \*\*", (ROOT / "docs" / "glossary.md").read_text(), flags=re.MULTILINE)) <= 40
