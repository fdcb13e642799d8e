"""Writes docs/interfaces.txt, which docs/stability.md describes: `python docs/site/interfaces.py`.

A test compares the file with this output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import msgspec

import trainwire
from trainwire.gateway.app import create_app
from trainwire.gateway.settings import GatewaySettings
from trainwire.schemas.tables import metadata
from trainwire.schemas.wire.messages import BODY_TYPES

PAGE = Path(__file__).parents[1] / "interfaces.txt"
ROOT = Path(__file__).parents[2]
PUBLIC_MODULES = (
    "integrations",
    "testing",
    "client.job",
    "client.metrics",
    "client.records",
)  # a Client returns the last three
PUBLIC_TABLES = (
    "training_jobs",
    "training_attempts",
    "training_logs",
    "training_metrics",
    "training_checkpoints",
    "dead_letters",
)
_HTTP_METHODS = ("get", "put", "post", "patch", "delete")
_UNUSED = GatewaySettings(database_url="postgresql://localhost", redis_url="redis://localhost")


def page() -> str:
    """Return the public interfaces as text, one name with its types a line."""
    sections = {"python": _python(), "http": _http(), "wire": _wire(), "tables": _tables()}
    return "\n".join(f"[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items())


def _python() -> Iterator[str]:
    package = griffe.load("trainwire", search_paths=[str(ROOT)], resolve_aliases=True, resolve_external=False)
    for name in sorted(trainwire.__all__):
        yield from _object(f"trainwire.{name}", package[name])
    for name in PUBLIC_MODULES:
        yield from _module(package[name])


def _module(module: Any) -> Iterator[str]:
    for name, member in sorted(module.members.items()):
        if member.is_alias or name.startswith("_"):
            continue
        if member.is_module:
            yield from _module(member)
        elif member.is_class or member.is_function:
            yield from _object(member.path, member)


def _object(path: str, item: Any) -> Iterator[str]:
    """Yield an object and, of a class, its public members and those that it inherits from our own classes."""
    item = item.final_target if item.is_alias else item
    if item.is_function:
        yield item.signature(name=path)
    elif item.is_class:
        bases = ", ".join(str(base) for base in item.bases)
        yield f"class {path}({bases})" if bases else f"class {path}"
        for name, member in sorted(item.all_members.items()):
            if name == "__init__" or not name.startswith("_"):
                yield from _object(f"{path}.{name}", member)
    else:
        yield f"{path}: {item.annotation}" if item.annotation else path


def _http() -> Iterator[str]:
    document = create_app(_UNUSED).openapi()
    for path, methods in sorted(document["paths"].items()):
        for method in _HTTP_METHODS:
            if operation := methods.get(method):
                yield f"{method.upper()} {path}"
                for parameter in operation.get("parameters", ()):
                    required = ", required" if parameter.get("required") else ""
                    yield f"  {parameter['in']} {parameter['name']}: {_schema(parameter['schema'])}{required}"
                if body := operation.get("requestBody"):
                    yield f"  body: {_contents(body)}"
                responses = sorted(operation["responses"].items())
                for status, response in responses:
                    if status < "400":
                        yield f"  {status}: {_contents(response)}"
                yield "  errors: " + ", ".join(status for status, _ in responses if status >= "400")
    yield from _fields(document["components"]["schemas"])


def _fields(schemas: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        required = set(schema.get("required", ()))
        for field, value in schema.get("properties", {}).items():
            yield f"{name}.{field}: {_schema(value)}{', required' if field in required else ''}"


def _contents(part: dict[str, Any]) -> str:
    contents = part.get("content", {})
    return ", ".join(
        f"{kind} {_schema(value.get('schema', {}))}".strip() for kind, value in sorted(contents.items())
    )


def _schema(schema: dict[str, Any]) -> str:
    """Return a JSON schema's type in short."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_schema(choice) for choice in choices)
    kind = schema.get("type", "any")
    if kind == "array":
        tuples = schema.get("prefixItems")
        items = ", ".join(map(_schema, tuples)) if tuples else _schema(schema.get("items", {}))
        return f"list of {items}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _wire() -> Iterator[str]:
    _, components = msgspec.json.schema_components(BODY_TYPES.values())
    yield from _fields(components)


def _tables() -> Iterator[str]:
    for name in PUBLIC_TABLES:
        table = metadata.tables[name]
        for column in table.columns:
            null = "" if column.nullable else " not null"
            yield f"{name}.{column.name}: {column.type}{null}"


if __name__ == "__main__":
    PAGE.write_text(page())
