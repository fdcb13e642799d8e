"""The end of `trainwire up` when a server cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainwire.cli.commands import up
from trainwire.stack.errors import Problem


class RefusedStack:
    """A stack whose Postgres refuses the password, or which fails once it runs."""

    def __init__(self, *, is_stopped: bool = False) -> None:
        self.stop_requested = is_stopped
        self.has_stopped = False

    def start(self) -> None:
        """Fail as `Stack.start`."""
        raise Problem('DATABASE_URL: password authentication failed for user "me"')

    def stop(self) -> None:
        """Stop what was started."""
        self.has_stopped = True


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_stop_on_signals", lambda _stack: None)


def test_a_wrong_password_is_an_error_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The problem is raised for exit code 1; nothing asks for ctrl-C, because nothing runs."""
    stack: Any = RefusedStack()
    with pytest.raises(Problem, match="password authentication failed"):
        up.run_stack(stack, tmp_path)
    assert stack.has_stopped
    assert capsys.readouterr().out == ""


def test_a_stop_during_the_start_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After ctrl-C the line names the second one, and there is no error."""
    stack: Any = RefusedStack(is_stopped=True)
    up.run_stack(stack, tmp_path)
    assert capsys.readouterr().out.startswith("stopping (ctrl-C again kills)\nstopped; the data is in ")
