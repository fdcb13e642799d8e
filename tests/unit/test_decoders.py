"""Types are read by decoders that are made with their module, never by `msgspec.json.decode(…, type=…)`.

msgspec 0.22 looks a type's fields up where it is first decoded; two threads that do so at once are a segmentation
fault of the whole process, a trainer's among them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "schemas",
    "stores",
    "ingest",
    "workers",
    "client",
    "gateway",
    "cli",
    "stack",
    "trainwire",
    "tests/twins",
)
MODULES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PLAIN = {"dict", "list", "str", "int", "float", "bytes", "bool", "Any"}
"""The types without fields to be looked up."""


def test_no_type_is_first_looked_up_by_a_thread() -> None:
    """A call of `decode` names no type of ours."""
    assert {str(module): found for module in MODULES if (found := [*typed_decodes(source_of(module))])} == {}


def test_such_a_call_is_found() -> None:
    """The check above finds a call of `decode` with a type."""
    assert list(typed_decodes("msgspec.json.decode(raw, type=list[Fault])")) == ["list[Fault]"]
    assert list(typed_decodes("msgspec.json.decode(raw, type=dict[str, Any])")) == []


def source_of(module: Path) -> str:
    """Return the text of one of `MODULES`."""
    return (ROOT / module).read_text()


def typed_decodes(source: str) -> Iterator[str]:
    """Yield the types with fields that a module's calls of `decode` name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "decode":
            for keyword in node.keywords:
                names = {part.id for part in ast.walk(keyword.value) if isinstance(part, ast.Name)}
                if keyword.arg == "type" and names - PLAIN:
                    yield ast.unparse(keyword.value)
