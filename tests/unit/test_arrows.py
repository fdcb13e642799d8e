"""The allowed imports between folders, checked by reading the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "stores", "ingest", "workers", "client", "gateway", "stack", "cli")
PUBLIC = "trainwire"
MAY_IMPORT = {
    "schemas": {"schemas"},
    "ingest": {"ingest", "schemas"},
    "stores": {"stores", "schemas"},
    "workers": {"workers", "schemas", "stores"},
    "client": {"client", "schemas", "stores", "ingest"},
    "gateway": {"gateway", "schemas", "stores"},
    "stack": set(FOLDERS) - {"cli"},
    "cli": {*FOLDERS, PUBLIC},
    PUBLIC: {PUBLIC, "client", "ingest", "schemas"},
}
CELERY_SHELL = {
    "app",
    "beat",
    "broker_consumer",
    "broker_transport",
    "tasks",
    "watchdog",
    "schedule",
    "__main__",
}
"""The modules of `workers` that may import Celery; the watchdog is a step of its worker."""

CARRIER = ROOT / "ingest" / "hooks" / "carrier"
"""Modules that a training's Python imports under another name, with relative imports between them."""
LATE = {f"mlflow_{part}.py" for part in ("artifacts", "entities", "experiments", "models", "store")}
"""Modules of the carrier that are imported after MLflow."""
MODULES = [
    path
    for folder in (*FOLDERS, PUBLIC)
    for path in sorted((ROOT / folder).rglob("*.py"))
    if CARRIER not in path.parents
]


@cache
def imported(path: Path, *, typing: bool = True) -> tuple[str, ...]:
    """Return the name of everything a file imports, of our own modules without `trainwire.`.

    Without `typing`, imports below `if TYPE_CHECKING:` are left out.
    """
    return tuple(_imported(path, typing))


def _imported(path: Path, typing: bool) -> Iterator[str]:
    for node in _nodes(_parsed(path), typing):
        if isinstance(node, ast.Import):
            yield from (_from_its_folder(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where an arrow leads"
            yield from (_from_its_folder(f"{node.module}.{alias.name}") for alias in node.names)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _nodes(node: ast.AST, typing: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if typing or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _nodes(child, typing)


def _from_its_folder(name: str) -> str:
    inner = name.removeprefix("trainwire.")
    return inner if inner.split(".")[0] in FOLDERS else name


def test_folders_import_only_their_predecessors() -> None:
    """`schemas` imports nothing, `stores` and `ingest` only `schemas`, `workers` and `gateway` also `stores`."""
    for path in MODULES:
        folder = path.relative_to(ROOT).parts[0]
        if path == ROOT / "trainwire" / "__main__.py":
            folder = "cli"  # `python -m trainwire` is the command line
        ours = {name.split(".")[0] for name in imported(path)} & {*FOLDERS, PUBLIC}
        assert ours <= MAY_IMPORT[folder], path


def test_only_the_shell_knows_celery() -> None:
    """The pipeline is plain Python that a test can call without Celery."""
    celery = {"celery", "kombu", "billiard"}
    modules = (ROOT / "workers").rglob("*.py")
    knowing = {path.stem for path in modules if celery & {name.split(".")[0] for name in imported(path)}}
    assert knowing <= CELERY_SHELL


@pytest.mark.parametrize("path", sorted(CARRIER.rglob("*.py")), ids=lambda path: path.stem)
def test_the_carrier_imports_the_standard_library_alone(path: Path) -> None:
    """The hooks run in the training's Python, which may have no package of trainwire's.

    Modules named after MLflow's parts are imported once MLflow is; `mlflow.py`, which imports them, is not.
    """
    nodes = ast.walk(ast.parse(path.read_text()))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    nodes = ast.walk(ast.parse(path.read_text()))
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    library = {"mlflow"} if path.name in LATE or path.name == "mlflow.py" else set()
    library |= {"wandb"} if path.name == "wandb_replaced.py" else set()  # within functions of a patched wandb
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "trainwire_hooks", *library}


def test_mlflow_is_not_imported_in_the_middle_of_its_import() -> None:
    """The module that registers the store imports MLflow, and the modules that do, in functions only."""
    tree = ast.parse((CARRIER / "trainwire_hooks" / "mlflow.py").read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names |= {str(node.module) for node in froms} | {alias.name for node in froms for alias in node.names}
    assert not [name for name in names if name.split(".")[0] == "mlflow" or f"{name}.py" in LATE]


def test_neither_modules_nor_rooms_import_each_other() -> None:
    """There are no import cycles between modules, or between the sub-folders of a folder."""
    names = {_module_of(path) for path in MODULES}
    modules = {
        _module_of(path): {_module_imported(name, names) for name in imported(path, typing=False)} - {None}
        for path in MODULES
    }
    rooms: dict[str, set[str]] = {}
    for module, others in modules.items():
        rooms.setdefault(_room_of(module), set()).update(_room_of(other) for other in others if other)
    for room, others_of_room in rooms.items():
        others_of_room.discard(room)
    assert list(TopologicalSorter(modules).static_order())
    assert list(TopologicalSorter(rooms).static_order())


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _module_imported(name: str, modules: set[str]) -> str | None:
    """Return the module of ours that an import names: itself, or the one that it takes a name from."""
    return next((known for known in (name, name.rpartition(".")[0]) if known in modules), None)


def _room_of(module: str) -> str:
    """Return the sub-folder of a module, or the module itself if it is in none."""
    return ".".join(module.split(".")[:2])


def test_a_trainer_gets_no_server_packages() -> None:
    """Neither `ingest` nor the public face names the tables or a package of the worker side."""
    forbidden = ("schemas.tables", "schemas.migrations", "sqlalchemy", "celery", "pydantic", "mlflow", "alembic")
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] in {"ingest", PUBLIC}:
            assert not [name for name in imported(path) if name.startswith(forbidden)], path
