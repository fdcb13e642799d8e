"""What a fork does to runs: the child starts over with empty hands, the parent notices nothing."""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """Something that holds locks and a thread, which a forked child does not inherit in working order."""

    def renew_after_fork(self) -> None:
        """Replace locks, buffers and threads in the child."""


class _Forks:
    """Keeps the sender's imports and forks apart.

    A child forked while another thread imports a module inherits that module half made, and its import lock
    held by nobody alive: it would hang on the same import, or miss what the module was about to define. So what
    the sender needs is imported while `importing()` is held, and nothing by the libraries later on.
    """

    def __init__(self) -> None:
        self.runs: WeakSet[Renewable] = WeakSet()
        self.importing = threading.Lock()
        self._is_held = False

    def before(self) -> None:
        self._is_held = self.importing.acquire(timeout=5)

    def after_in_parent(self) -> None:
        if self._is_held:
            self.importing.release()

    def after_in_child(self) -> None:
        self.importing = threading.Lock()
        for run in list(self.runs):
            run.renew_after_fork()


_forks = _Forks()
os.register_at_fork(
    before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
)


def renew_in_children(run: Renewable) -> None:
    """Have `run` renewed in every process that is forked from now on."""
    _forks.runs.add(run)


def importing() -> threading.Lock:
    """Return the lock to hold while a thread other than the main one imports."""
    return _forks.importing
