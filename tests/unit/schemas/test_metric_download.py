"""Names of metrics in the parameter `names` of requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainwire.schemas.metric_download import joined_names, split_names


@given(st.lists(st.text(st.sampled_from("\\, \t\r\nab\u00a0"), min_size=1), unique=True))
def test_any_names_come_back(names: list[str]) -> None:
    """Commas, backslashes and white space in names are kept, also at their ends."""
    assert split_names([joined_names(names)]) == names


def test_typed_names_are_read() -> None:
    """White space around typed names is removed; a backslash before another character is part of the name."""
    assert split_names(["loss, val\\acc ,, f(x\\, y)", "loss"]) == ["loss", "val\\acc", "f(x, y)"]
