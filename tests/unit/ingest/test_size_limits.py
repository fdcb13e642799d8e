"""Values too large for a message are shortened, split or left out, and the others are sent."""

from __future__ import annotations

import logging
import threading

import pytest

from tests.factories import NOW_NS
from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending.buffer import Buffer, Line, log_bodies
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.size_limits import fitted
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.limits import MAX_ITEMS, MAX_LINE_CHARS, MAX_METRIC_NAME_CHARS, MAX_TEXT_CHARS
from trainwire.schemas.wire.messages import Body, Checkpoint, Completion, Logs, Metrics, Point
from trainwire.schemas.wire.validation import check_body

TOO_LARGE: dict[str, Body] = {
    "params": Metrics(name="run", params={"lr": 0.1, "blob": "x" * 2**21, "rows": [[]] * 200_000}),
    "tags": Metrics(tags={f"tag{n}": ["y" * 1000] * 10 for n in range(200)}),
    "many params": Metrics(params={f"p{n}": n for n in range(150_000)}),
    "name": Metrics(name="n" * 5000),
    "metric name": Metrics(points=[Point(ts=1, values={"m" * 2000: 1.0, "kept": 2.0})]),
    "values": Metrics(points=[Point(ts=1, values={f"m{n}": 1.0 for n in range(MAX_ITEMS + 5)})]),
    "all values": Metrics(points=[Point(ts=n, values={f"m{k}": 1.0 for k in range(90_000)}) for n in range(3)]),
    "path": Metrics(points=[Point(ts=1, values={"a": 1.0}, checkpoint_path="/p" * 10_000)]),
    "uri": Checkpoint(ts=1, kind="k" * 2000, uri="/p" * 10_000, metrics={"m" * 2000: 1.0, "a": 1.0}),
    "error": Completion(ts=1, status="failed", error_message="e" * 10**6, traceback="t" * 2 * 2**20),
    "final metrics": Completion(
        ts=1, status="completed", final_metrics={f"m{n}": 1.0 for n in range(MAX_ITEMS + 9)}
    ),
    "level": Logs(log_type="stdout", lines=["a"], ts=[1], levels=["L" * 1000]),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_workers_take_what_is_left(what: str) -> None:
    """Whatever is too large, the rest passes the validation of the workers."""
    body, cuts = fitted(TOO_LARGE[what])
    check_body(body)
    assert cuts or what in {"level", "values"}


def test_what_fits_is_left_as_it_is() -> None:
    """The same object comes back, and nothing is named."""
    body = Metrics(name="run", params={"lr": 0.1}, points=[Point(ts=1, values={"loss": 1.0})])
    assert fitted(body) == (body, [])


def test_the_other_params_are_kept() -> None:
    """A value that is too large is named, a text is shortened; name and other params stay."""
    body, cuts = fitted(TOO_LARGE["params"])
    assert isinstance(body, Metrics)
    assert body.params is not None
    assert (body.name, body.params["lr"], len(body.params["blob"])) == ("run", 0.1, 1000)
    assert "rows" not in body.params
    assert any("'rows'" in cut and "left out" in cut for cut in cuts)


def test_a_point_of_too_many_values_is_split() -> None:
    """All values are kept, in two points of the same moment."""
    body, _ = fitted(TOO_LARGE["values"])
    assert isinstance(body, Metrics)
    assert [(point.ts, len(point.values)) for point in body.points] == [(1, MAX_ITEMS), (1, 5)]


def test_a_line_of_forty_megabytes_is_split() -> None:
    """Its pieces, put together, are the line; each fits into a message."""
    text = "0123456789" * 4_000_000
    line = Line("stdout", None, NOW_NS, text)
    bodies = [
        body for body, _ in log_bodies([line._replace(text="before"), line, line._replace(text="after")], None)
    ]
    lines = [piece for body in bodies for piece in body.lines]
    assert (lines[0], "".join(lines[1:-1]), lines[-1]) == ("before", text, "after")
    assert max(map(len, lines)) <= MAX_LINE_CHARS
    for body in bodies:
        check_body(body)


def test_one_warning_names_it_and_the_message_goes_out(caplog: pytest.LogCaptureFixture) -> None:
    """The outbox sends the rest, counts the omissions, and warns once."""
    buffer = Buffer(2**30, threading.Event())
    outbox = Outbox(Origin(1, 1, "0-test", None), buffer)
    with caplog.at_level(logging.WARNING, "trainwire.ingest"):
        for _ in range(3):
            buffer.add_metric(Metrics(name="run", params={"lr": 0.1, "blob": ["x" * 100] * 20_000}))
            outbox.cut()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "params['blob'] is left out" in warning
    sent = outbox.to_send(2**30)["metrics"]
    fields = {
        name.encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in sent[0].entry.items()
    }
    body = decode_body("metrics", open_envelope(fields))
    assert isinstance(body, Metrics)
    assert (body.name, body.params) == ("run", {"lr": 0.1})
    assert buffer.dropped == {"values": 3}


def test_limits_are_named_in_one_place() -> None:
    """The longest name of a metric is one that workers take."""
    values = {"m" * MAX_METRIC_NAME_CHARS: 1.0}
    check_body(Metrics(name="n" * MAX_TEXT_CHARS["name"], points=[Point(ts=1, values=values)]))
