"""Shared by the tests of the framework integrations, which `make frameworks` runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from tests.factories import drain
from tests.processes import ROOT
from trainwire.schemas.keys import KINDS
from trainwire.testing import RecordedRun
from trainwire.workers.resources import Resources

REASON: Final = "the frameworks are not installed: run `make frameworks`"
"""Why a test is skipped; `make frameworks` skips none."""


ReportT = TypeVar("ReportT", bound=pytest.CollectReport | pytest.TestReport)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail where a framework is missing."""
    return _failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail where a test is skipped."""
    return _failed_if_skipped((yield))


def _failed_if_skipped(report: ReportT) -> ReportT:
    if report.skipped and os.environ.get("TRAINWIRE_TEST_FRAMEWORKS"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


def _declare_operators_of_torchvision() -> None:
    """Let PyPI's torchvision be imported beside a CPU build of torch.

    Its compiled operators need a CUDA build, and its import fails where these two are not declared. No test here
    calls them.
    """
    try:
        is_needed = version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return
    if is_needed:
        import torch  # noqa: PLC0415 - only where it is installed

        _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _LIBRARIES[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_LIBRARIES: Final[list[Any]] = []  # an operator lives as long as its library
_declare_operators_of_torchvision()


def run_script(script: str, *arguments: str, resources: Resources, folder: Path, **env: str) -> int:
    """Run a training that reports to the test's Redis as job 42, drain its streams, and return its exit code."""
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    redis_url = resources.settings.redis_url.get_secret_value()
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": python_path, "REDIS_URL": redis_url} | env,
        check=False,
    )
    for kind in KINDS:
        drain(resources, kind, 42)
    return ended.returncode


@pytest.fixture
def run() -> Iterator[RecordedRun]:
    """Give a run that records all calls; it is completed after the test."""
    with RecordedRun(42) as run:
        yield run
