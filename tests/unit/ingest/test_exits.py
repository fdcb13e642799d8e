"""What is done to see how a process ends leaves no trace in it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainwire.ingest.process.daemon_pool import signals_blocked
from trainwire.ingest.process.exits import Exits, Terminations


@pytest.fixture
def python_exit() -> Iterator[None]:
    """Put back the `sys.exit` of before."""
    before = sys.exit
    yield
    sys.exit = before


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    """Begin with the default action of SIGTERM, and put back the one of before."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("python_exit")
def test_an_exit_that_is_watched_is_pickled_as_any_other() -> None:
    """A pool of processes sends it to its parent, which may not have trainwire."""
    Exits().watch()
    with pytest.raises(SystemExit) as raised:
        sys.exit(3)
    data = pickle.dumps(raised.value)
    assert b"ingest" not in data
    assert pickle.loads(data).code == 3


@pytest.mark.usefixtures("python_exit")
def test_sys_exit_is_wrapped_once() -> None:
    """However many runs a process makes."""
    exits = Exits()
    exits.watch()
    wrapped = sys.exit
    exits.watch()
    assert sys.exit is wrapped


def test_threads_of_trainwire_take_no_signal_of_the_training() -> None:
    """They leave it to the thread that waits for it, and still crash of errors of their own."""
    masks: list[set[Any]] = []
    with signals_blocked():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        thread.start()
    thread.join()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= masks[0]
    assert signal.SIGSEGV not in masks[0]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.usefixtures("default_sigterm")
def test_a_forked_child_has_the_default_action_of_sigterm() -> None:
    """A child that is terminated at once ends of it, also where no Python code runs."""
    terminations = Terminations()
    terminations.watch("run", lambda _timeout_s: None)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    terminations.forget("run")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("default_sigterm")
def test_a_handler_that_was_installed_later_is_the_one_that_decides() -> None:
    """It may call the one it found, which finishes nothing."""
    terminations = Terminations()
    calls: list[str] = []
    terminations.watch("run", lambda _timeout_s: calls.append("finished"))
    found: Callable[..., Any] = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]

    def handler(*arguments: Any) -> None:
        calls.append("handled")
        found(*arguments)

    signal.signal(signal.SIGTERM, handler)
    os.kill(os.getpid(), signal.SIGTERM)
    terminations.forget("run")
    assert calls == ["handled"]
    assert signal.getsignal(signal.SIGTERM) is handler
