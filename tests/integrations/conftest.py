"""Shared by the tests of the framework integrations, which `make frameworks` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import pytest

from ingest.testing import RecordedRun

REASON: Final = "the frameworks are not installed: run `make frameworks`"
"""Why a test is skipped; `make frameworks` skips none."""


def require(module: str) -> None:
    """Skip the tests of the calling module where a framework is missing; `make frameworks` fails instead."""
    if not os.environ.get("TRAINWIRE_TEST_FRAMEWORKS"):
        pytest.importorskip(module, reason=REASON)


def _declare_operator_of_torchvision() -> None:
    """Let PyPI's torchvision be imported beside a CPU build of torch.

    Its compiled operators need a CUDA build, and its import fails where `nms` is not declared. Nothing here calls it.
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


_LIBRARIES: Final[list] = []  # an operator lives as long as its library
_declare_operator_of_torchvision()


@pytest.fixture
def run() -> Iterator[RecordedRun]:
    """Give a run that keeps what it is told, and ends well with the test."""
    with RecordedRun(42) as run:
        yield run
