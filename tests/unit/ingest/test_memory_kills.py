"""The kernel's counters of out-of-memory kills, as cgroup v1 and v2 show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire.ingest.launcher.memory_kills import MemoryKills

V2 = "low 0\nhigh 0\nmax 3\noom 1\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("own", "counter", "text"),
    [
        ("0::/jobs/42\n", "jobs/42/memory.events", V2),
        ("0::/\n", "memory.events", V2),
        ("0::/outside/of/the/container\n", "memory.events", V2),
        ("5:cpu,cpuacct:/a\n4:memory:/jobs/42\n0::/\n", "memory/jobs/42/memory.oom_control", V1),
        ("4:memory:/outside\n0::/\n", "memory/memory.oom_control", V1),
    ],
)
def test_a_kill_is_seen_in_the_own_control_group(tmp_path: Path, own: str, counter: str, text: str) -> None:
    """What the counter rose by since the beginning is said, with the group; a counter that stands says nothing."""
    (tmp_path / "own").write_text(own)
    file = tmp_path / "cgroup" / counter
    file.parent.mkdir(parents=True)
    file.write_text(text.format(7))
    kills = MemoryKills(str(tmp_path / "cgroup"), str(tmp_path / "own"))
    assert kills.cause() is None
    file.write_text(text.format(8))
    assert kills.cause() == f"out of memory: the kernel killed a process of the control group {file.parent}"
    file.write_text(text.format(10))
    assert "killed 3 processes" in (kills.cause() or "")


def test_without_a_counter_nothing_is_said(tmp_path: Path) -> None:
    """No control groups, as on other systems: no cause and no error."""
    assert MemoryKills(str(tmp_path), str(tmp_path / "none")).cause() is None
    (tmp_path / "own").write_text("0::/a\n")
    assert MemoryKills(str(tmp_path), str(tmp_path / "own")).cause() is None
