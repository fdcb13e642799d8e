"""The imports of integrations, and the error for a missing framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trainwire.integrations.reporting import harmless

ROOT = Path(__file__).parents[3]
SHARED = {"__init__", "reporting"}
FILES = sorted((ROOT / "trainwire" / "integrations").glob("*.py"))
INTEGRATIONS = [path for path in FILES if path.stem not in SHARED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_none_imports_another(path: Path) -> None:
    """Besides the shared module, an integration imports no other one."""
    modules = [
        node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    beside = {
        name.removeprefix("trainwire.integrations.")
        for name in modules
        if name.startswith("trainwire.integrations")
    }
    assert beside <= SHARED - {path.stem}


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: path.stem)
def test_each_is_documented(path: Path) -> None:
    """docs/integrations.md shows how it is imported."""
    assert f"trainwire.integrations.{path.stem} import" in (ROOT / "docs" / "integrations.md").read_text()


@pytest.mark.parametrize(
    ("integration", "package", "remedy"),
    [
        ("system", "psutil", "pip install 'trainwire[system]'"),
        ("huggingface", "transformers", "pip install 'transformers[torch]'"),
        ("lightning", "lightning", "pip install lightning"),
        ("ultralytics", "ultralytics", "pip install ultralytics"),
        ("keras", "keras", "pip install keras and jax, torch or tensorflow"),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(integration: str, package: str, remedy: str) -> None:
    """The import fails with one sentence that has the integration, the missing package and the remedy."""
    script = f"import sys; sys.modules[{package!r}] = None; import trainwire.integrations.{integration}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: trainwire.integrations.{integration} needs ")
    assert remedy in last


def test_an_error_of_a_report_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    """Training goes on; the warning has the traceback, and is not repeated."""
    calls = []

    @harmless
    def report(value: int) -> None:
        calls.append(value)
        raise AttributeError("renamed in version 9")

    report(1)
    report(value=2)
    assert calls == [1, 2]
    assert caplog.text.count("training goes on without it") == 1
    assert "renamed in version 9" in caplog.text
