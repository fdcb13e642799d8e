"""Each sink has a folder of its own and one line in the registry of sinks."""

from __future__ import annotations

import ast
import re
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from trainwire.schemas.keys import QUEUES
from trainwire.schemas.sinks import SINKS
from trainwire.workers.sinks.plugin import plugin

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "workers" / "sinks"


@pytest.mark.parametrize("name", SINKS)
def test_every_sink_has_a_plugin(name: str) -> None:
    """The entry of a sink leads to its plugin, which has the same name."""
    assert plugin(name) is plugin(name)
    assert f'"{name}"' in "".join(path.read_text() for path in (FOLDER / name).glob("*.py"))


def test_every_folder_is_in_the_registry() -> None:
    """Every folder of a sink is in the registry, so that workers load it."""
    assert {path.parent.name for path in FOLDER.glob("*/plugin.py")} == set(SINKS)


def test_no_two_sinks_share_a_queue_or_a_worker() -> None:
    """Sinks have separate queues and workers, so that a slow one does not delay others."""
    for first, second in combinations(SINKS.values(), 2):
        assert (first.queue, first.worker) != (second.queue, second.worker)
        assert first.queue != second.queue
    assert {sink.queue for sink in SINKS.values()} <= set(QUEUES)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_sink_imports_no_other(path: Path) -> None:
    """A module in the folder of a sink imports no other sink, and the shared modules import none."""
    own = path.relative_to(FOLDER).parts[0]
    imported = [
        node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    others = {name.split(".")[2] for name in imported if re.match(r"workers\.sinks\.\w+\.", name)} & set(SINKS)
    assert others <= {own}


@pytest.mark.parametrize("name", SINKS)
def test_no_condition_names_a_sink(name: str) -> None:
    """Only a sink's own folder and the modules that read from it compare with its name."""
    compared = re.compile(rf"[=!]= \"{name}\"|\bin \{{?\(?\"{name}\"")
    for folder in ("gateway", "stores", "cli", "stack", "trainwire", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name != name and not path.stem.startswith(name):
                assert not compared.search(path.read_text()), path
