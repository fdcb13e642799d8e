"""A command that the kernel kills for its memory, under the launcher."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.launcher.command import MemoryKills
from trainwire.ingest.launcher.launch import LaunchOptions, launch


def test_the_cause_of_a_kill_is_its_error(valkey: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while the counter of the control group rises: out of memory is the cause, and not its last words."""
    (tmp_path / "own").write_text("0::/\n")
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    monkeypatch.setattr(
        "trainwire.ingest.launcher.command_output.MemoryKills",
        partial(MemoryKills, str(tmp_path), str(tmp_path / "own")),
    )
    monkeypatch.setenv("TRAINWIRE_SETTLE_S", "0")
    killed = f"import os; open({str(counter)!r}, 'w').write('oom_kill 1\\n'); os.kill(os.getpid(), 9)"
    assert launch([sys.executable, "-c", killed], LaunchOptions(job_id=42, redis_url=valkey.url)) == 137
    (completion,) = valkey.completions()
    assert (completion.status, completion.exit_code) == ("failed", 137)
    assert completion.error_message == (
        f"killed by signal SIGKILL: out of memory: the kernel killed a process of the control group {tmp_path}"
    )
