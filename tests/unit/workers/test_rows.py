"""Messages become rows with the columns of their tables."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.workers.drain.rows import Origin, metric_rows


def test_points_of_one_message_may_have_different_metrics() -> None:
    """Each point has its own metrics, in columns or in extra_metrics, also where names or their order change."""
    values: list[dict[str, float]] = [
        {"loss": 0.0, "lr": 0.1},
        {"loss": 0.5, "lr": 0.2},
        {"lr": 0.3, "loss": 1.0, "": 7.0},
        {"accuracy": 0.25, "acc": 0.75, "x": 2.0},
        {"x": 3.0},
        {},
    ]
    body = Metrics(points=[Point(ts=0, values=each) for each in values])
    columns = ROW_KINDS["metrics"].columns
    rows = [dict(zip(columns, row, strict=True)) for row in metric_rows(Origin(1, 1, "a"), 5, body)]
    lifted = [(row["loss"], row["accuracy"], row["learning_rate"]) for row in rows]
    assert lifted == [
        (0.0, None, 0.1),
        (0.5, None, 0.2),
        (1.0, None, 0.3),
        (None, 0.25, None),
        (None, None, None),
        (None, None, None),
    ]
    extra = [each.obj if isinstance(each := row["extra_metrics"], Jsonb) else each for row in rows]
    assert extra == [None, None, {"": 7.0}, {"acc": 0.75, "x": 2.0}, {"x": 3.0}, None]
    assert [row["seq"] for row in rows] == [5, 6, 7, 8, 9, 10]
