"""Lines read from Loki: parts are joined, labels are validated, newer rows are left out."""

from __future__ import annotations

from tests.factories import NOW_NS
from trainwire.stores.loki.lines import whole_lines, without_newer
from trainwire.stores.loki.query import LokiLine


def _line(seq: int | str, text: str, ts_ns: int = NOW_NS, **labels: str) -> LokiLine:
    return LokiLine(ts_ns, text, tuple({"seq": str(seq), "log_type": "stdout", **labels}.items()))


def test_parts_are_joined_in_the_order_of_their_numbers() -> None:
    """The tenth part follows the ninth, also across pages of Loki's answer."""
    parts = [_line(5, f"[{number}]", part=f"{number}/11") for number in (1, 10, 11, 3, 2, 4, 5, 6, 7, 8, 9)]
    lines = [_line(4, "before"), *parts, _line(6, "beside"), _line(7, "after", NOW_NS + 1)]
    texts = [text for _, text in whole_lines(lines)]
    assert texts == ["before", "".join(f"[{number}]" for number in range(1, 12)), "beside", "after"]


def test_a_second_copy_is_a_line_of_its_own() -> None:
    """A line that Loki has twice is shown twice, split or not."""
    split = [_line(5, text, part=part) for part, text in (("1/2", "a"), ("2/2", "b"))]
    late = [LokiLine(line.ts_ns, line.line, (*line.labels, ("late", "2026-09-21T11"))) for line in split]
    whole = [_line(1, "x"), _line(1, "x", late="2026-09-21T11")]
    assert [text for _, text in whole_lines([*split, *late, *whole])] == ["x", "x", "ab", "ab"]


def test_only_a_number_is_a_number() -> None:
    """An invalid label of another client does not count as the number of a row."""
    found = [
        _line(text, "").seq for text in ("7", "", "-7", "7.0", "\N{ARABIC-INDIC DIGIT SEVEN}", "x", "9" * 5000)
    ]
    assert found == [7, None, None, None, None, None, None]


def test_rows_that_came_meanwhile_are_left_out() -> None:
    """Lines stored during the comparison are not unknown, and cost few reads of Postgres."""
    asked: list[int] = []

    def newest_seq() -> int:
        asked.append(1)
        return 4

    lines = [_line(seq, "") for seq in (1, 2, 3, 4, 3, 5, "x")]
    assert [line.seq for line in without_newer(lines, 2, newest_seq)] == [1, 2, 5, None]
    assert len(asked) == 2
