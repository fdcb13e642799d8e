"""Renews locks, buffers and threads in forked children.

A child begins without the parent's unsent messages; the parent is not affected.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """An object with locks or threads, which must be replaced in a forked child because they do not work there."""

    def renew_after_fork(self) -> None:
        """Replace the locks, buffers and threads; called in the child."""


class _Forks:
    """Delays forks while a thread of trainwire imports modules, and renews registered objects in forked children.

    A child forked during an import would inherit a module that is only half initialized, and an import lock
    that no thread releases. The same import in the child would hang, or lack names of the module. So threads
    hold the lock that `importing()` returns while they import, and a fork waits for it, for 5 seconds at most.
    """

    def __init__(self) -> None:
        self.objects: WeakSet[Renewable] = WeakSet()
        self.importing = threading.Lock()
        self._is_held = False

    def before(self) -> None:
        self._is_held = self.importing.acquire(timeout=5)

    def after_in_parent(self) -> None:
        if self._is_held:
            self.importing.release()

    def after_in_child(self) -> None:
        self.importing = threading.Lock()
        for each in list(self.objects):
            each.renew_after_fork()


_forks = _Forks()
os.register_at_fork(
    before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
)


def renew_in_children(renewable: Renewable) -> None:
    """Call `renewable.renew_after_fork()` in every child that is forked from now on."""
    _forks.objects.add(renewable)


def importing() -> threading.Lock:
    """Return the lock that a thread of trainwire must hold while it imports modules."""
    return _forks.importing
