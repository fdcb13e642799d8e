"""Real workers and entries that end their processes, by a fault that only the test injects."""

from __future__ import annotations

from pathlib import Path

from tests.factories import Sender, logs, rows
from tests.processes import wait_until, workers_running
from trainwire.schemas.tables import dead_letters, training_logs
from trainwire.workers.resources import Resources

PLUG = '''
"""Read by every Python process that has this folder on its path."""
import os, signal
import trainwire.workers.drain.decoding
original = trainwire.workers.drain.decoding.decode_plain

def decode_plain(kind, encoding, plain):
    if b"kills the decoder" in plain:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(kind, encoding, plain)

trainwire.workers.drain.decoding.decode_plain = decode_plain
'''


def test_entries_that_kill_the_pool_stop_no_stream(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Five entries each kill the process that decodes them; all others are stored."""
    folder = tmp_path / "plug"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PLUG)
    honest = [f"line {number}" for number in range(50)]
    for number, line in enumerate(honest):
        sender.send(logs(line))
        if number % 10 == 5:
            sender.send(logs("kills the decoder"), job=5)
    with workers_running(resources.settings, tmp_path, PYTHONPATH=str(folder)):
        wait_until(
            lambda: len(rows(resources.engine, training_logs, "seq")) == len(honest),
            "the honest rows",
        )
        sender.send(logs("after it"))
        wait_until(
            lambda: rows(resources.engine, training_logs, "content")[-1] == "after it",
            "the next row",
        )
    assert rows(resources.engine, training_logs, "content") == [*honest, "after it"]
    assert rows(resources.engine, dead_letters, "reason", order=["id"]) == ["kills-decoder"] * 5
