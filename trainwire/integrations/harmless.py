"""Keeps an error of ours, or a framework's that has changed, out of somebody's training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

logger = logging.getLogger("trainwire.integrations")


def harmless(report: Callable[P, None]) -> Callable[P, None]:
    """Return `report` so that it raises nothing: its first error is a warning, with the traceback."""
    has_warned = False

    @functools.wraps(report)
    def reported(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal has_warned
        try:
            report(*args, **kwargs)
        except Exception:
            if not has_warned:
                has_warned = True
                logger.warning("%s failed: training goes on without it", report.__qualname__, exc_info=True)

    return reported
