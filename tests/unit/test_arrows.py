"""Which folder may import which: the direction of the data, held by reading the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "stores", "ingest", "workers", "gateway", "stack", "cli")
PUBLIC = "trainwire"
MAY_IMPORT = {
    "schemas": {"schemas"},
    "ingest": {"ingest", "schemas"},
    "stores": {"stores", "schemas"},
    "workers": {"workers", "schemas", "stores"},
    "gateway": {"gateway", "schemas", "stores"},
    "stack": set(FOLDERS) - {"cli"},
    "cli": set(FOLDERS),
    PUBLIC: {PUBLIC, "ingest", "schemas"},
}
CELERY_SHELL = {"app", "beat", "broker_transport", "orders", "tasks", "watchdog", "schedule", "__main__"}
"""The modules of `workers` that may know Celery; the watchdog is a step of its worker."""

LAYERS = [
    {"__main__"},
    {"watchdog", "beat", "flower"},
    {"tasks", "stream_watch", "broker_transport"},
    {"orders"},
    {"app"},
    {"exporter"},
    {"measures"},
    {"schedule"},
    {"deletion"},
    {"deletion_parts"},
    {"sweep"},
    {
        "strays",
        "liveness",
        "dead_letters",
        "reconcile",
        "notify",
        "deliver",
        "verify",
        "retention",
        "row_retention",
        "lease",
    },
    {"orphans"},
    {"surplus"},
    {"drain", "delivery_round"},
    {"trials", "examination"},
    {"batch", "items"},
    {"heartbeats"},
    {"ahead"},
    {"store", "job_rows", "source_rows", "streams", "changes", "cursors", "checkpoints"},
    {"sinks"},
    {"attempts"},
    {"jobs"},
    {"rows", "resources", "weights"},
    {"order_checks", "repairs"},
    {
        "positions",
        "decoding",
        "errors",
        "settings",
        "logs",
        "durations",
        "away",
        "recordset",
        "findings",
    },
    {"local_hosts"},
]
"""`workers` from the outside in: a module imports only from layers below its own."""

MODULES = [path for folder in (*FOLDERS, PUBLIC) for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Yield the name of everything a file imports: of ours from its folder on, of others in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (_from_its_folder(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where an arrow leads"
            yield from (_from_its_folder(f"{node.module}.{alias.name}") for alias in node.names)


def _from_its_folder(name: str) -> str:
    inner = name.removeprefix("trainwire.")
    return inner if inner.split(".")[0] in FOLDERS else name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_import_only_what_lies_before_them(path: Path) -> None:
    """`schemas` imports nobody; `stores` and `ingest` only `schemas`; `workers` and `gateway` also `stores`."""
    folder = path.relative_to(ROOT).parts[0]
    if path == ROOT / "trainwire" / "__main__.py":
        folder = "cli"  # `python -m trainwire` is the command line
    ours = {name.split(".")[0] for name in imported(path)} & {*FOLDERS, PUBLIC}
    assert ours <= MAY_IMPORT[folder]


@pytest.mark.parametrize("path", sorted((ROOT / "workers").glob("*.py")), ids=lambda path: path.stem)
def test_only_the_shell_knows_celery(path: Path) -> None:
    """The pipeline is plain Python that a test can call without Celery."""
    knows = any(name.split(".")[0] in {"celery", "kombu", "billiard"} for name in imported(path))
    assert not knows or path.stem in CELERY_SHELL


def test_layers_name_modules_that_exist() -> None:
    """A module that was moved or deleted leaves no name behind."""
    modules = {path.stem for path in (ROOT / "workers").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set[str]().union(*LAYERS) <= modules


@pytest.mark.parametrize("path", sorted((ROOT / "workers").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_workers_import_downwards(path: Path) -> None:
    """Inside `workers` the arrows go from the shell to the store, and never back."""
    height = next(index for index, layer in enumerate(LAYERS) if path.stem in layer)
    below = set[str]().union(*LAYERS[height + 1 :])
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("workers.")}
    siblings = {
        name.split(".")[-1] for name in imported(path) if name.startswith("workers.") and name.count(".") == 1
    }
    assert (ours | siblings) <= below


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "ingest").rglob("*.py"), *(ROOT / "trainwire").rglob("*.py")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_trainer_gets_no_server_packages(path: Path) -> None:
    """Neither `ingest` nor the public face names the tables or a package of the worker side."""
    forbidden = ("schemas.tables", "schemas.migrations", "sqlalchemy", "celery", "pydantic", "mlflow", "alembic")
    assert not [name for name in imported(path) if name.startswith(forbidden)]
