"""Values from the configuration that Loki reports."""

from __future__ import annotations

import pytest

from trainwire.stores.loki.config import hidden_after, setting


@pytest.mark.parametrize(
    ("queriers_ask_within", "looks_back", "age"),
    [
        ("3h0m0s", "2h41m0s", "2h41m0s"),
        ("3h0m0s", "-1ns", None),
        ("3h0m0s", "0s", "3h0m0s"),
        ("0s", "0s", None),
    ],
)
def test_the_age_at_which_late_lines_are_hidden(
    queriers_ask_within: str, looks_back: str, age: str | None
) -> None:
    """A single process uses its look-back period, several use that of queriers in ingesters."""
    config = (
        f"querier:\n  query_ingesters_within: {queriers_ask_within}\n"
        f"ingester:\n  query_store_max_look_back_period: {looks_back}\n"
    )
    assert hidden_after(config) == age


def test_a_setting_is_a_whole_name_with_a_value() -> None:
    """Only a line with the whole name and a value is the setting."""
    config = "storage:\n  object_store:\n    x: 1\nmy_object_store: s3\nschema:\n  - object_store: filesystem\n"
    assert setting(config, "object_store") == "filesystem"
    assert setting(config, "retention") is None
