"""The examples of docs/client.md, run as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs
from tests.gateway_server import GatewayServer
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.workers.resources import Resources

DOCUMENT = Path(__file__).parents[3] / "docs" / "client.md"
JOB = 6400


def test_the_examples_of_the_document_run(
    gateway: GatewayServer,
    resources: Resources,
    sender: Sender,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of them, in order, against a job with metrics, a log and a checkpoint."""
    points = [Point(ts=NOW_NS + at, step=at, values={"loss": 1 / (at + 1), "acc": at / 3}) for at in range(3)]
    sender.send(Metrics(name="digits", params={"lr": 0.1}, points=points), job=JOB)
    sender.send(logs("a line"), job=JOB)
    sender.send(checkpoint("s3://bucket/6400/best.pt"), job=JOB)
    sender.send(completion(), job=JOB)
    drain(resources, "metrics", JOB)
    drain(resources, "logs", JOB)
    drain(resources, "checkpoints", JOB)
    drain(resources, "completions", JOB)
    monkeypatch.setenv("TRAINWIRE_URL", gateway.url)
    for name in ("TRAINWIRE_TOKEN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(DOCUMENT), "exec"), names)
    out = capsys.readouterr().out
    assert "completed {'lr': 0.1}" in out
    assert f"{JOB} digits" in out
    assert "1 best" in out
    assert "snapshot" in out
    assert len(examples) == 4
