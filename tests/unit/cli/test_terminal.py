"""Text from trainers cannot send control sequences to the terminal, or markup to rich."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainwire.cli.commands.jobs.logs import shown_line
from trainwire.cli.formats import local, shown_clock
from trainwire.cli.terminal import cell, one_line, safe
from trainwire.schemas.events import LogLine
from trainwire.schemas.times import to_ns


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07title", "title"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b2Jc1", "c1"),
        ("\x9d0;t\x9cosc", "osc"),
        ("bell\x07 back\x08 cr\rnul\x00", "bell back crnul"),
        ("\x1bPq#0\x1b\\dcs", "dcs"),
        ("\x1bc reset", " reset"),
        ("tab\tand\nline, ünïcode 漢字 🎉", "tab\tand\nline, ünïcode 漢字 🎉"),
        ("\x1b", ""),
        ("\x1b[\x1b[31mx", "x"),
        ("cut \x1b]0;never ends", "cut 0;never ends"),
    ],
)
def test_control_sequences_are_stripped(text: str, shown: str) -> None:
    """Titles, links, cursor moves, BEL characters and resets are removed; the text stays."""
    assert safe(text) == shown


def test_bidirectional_controls_are_shown_by_name() -> None:
    """Unicode's direction controls and line separators cannot make a text look like another."""
    unseen = [chr(code) for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))]
    assert [safe(char) for char in unseen] == [f"<U+{ord(char):04X}>" for char in unseen]
    assert safe("exe.\u202egpj", colours=True) == one_line("exe.\u202egpj") == "exe.<U+202E>gpj"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Give a function that moves this process to another time zone for the test."""

    def move(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def test_times_are_local_where_they_can_be(zone: Callable[[str], None]) -> None:
    """Times in the first and last year without a local time are shown in UTC, the others in the local zone."""
    first, last = datetime(1, 1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, tzinfo=UTC)
    zone("America/Los_Angeles")
    assert (local(first), local(first).tzname()) == (first, "UTC")
    assert local(datetime(2026, 1, 2, 3, tzinfo=UTC)).strftime("%d %H %Z") == "01 19 PST"
    zone("Asia/Tokyo")
    assert (local(last), local(last).tzname()) == (last, "UTC")


def test_every_shown_time_survives_hostile_years(zone: Callable[[str], None]) -> None:
    """Tables, log lines and outages can show times of the first year."""
    zone("America/Los_Angeles")
    at = datetime(1, 1, 1, 1, 2, 3, tzinfo=UTC)
    line = LogLine(seq=1, attempt=1, ts=to_ns(at), log_type="stdout", level=None, rank=None, text="x")
    assert shown_line(line, colours=False) == "01:02:03.000 stdout x"
    assert shown_clock(at).endswith("-01-01 01:02")


def test_colours_stay_on_request_and_end_with_the_text() -> None:
    """A trainer's colours are shown on a terminal, and are reset before the next line."""
    assert safe("\x1b[31mred\x1b[2J", colours=True) == "\x1b[31mred\x1b[0m"
    assert safe("plain", colours=True) == "plain"


@given(st.text(alphabet=st.sampled_from("\x1b[]0;31mHJ\x07\\\x9b\x9cPX ab\n\t\x00")))
def test_no_control_character_survives(text: str) -> None:
    """After any sequence, cut or nested, no control character except tab and newline is left."""
    assert not any(ord(char) < 32 and char not in "\t\n" for char in safe(text))
    assert not any(0x7F <= ord(char) <= 0x9F for char in safe(text))


def test_markup_is_text() -> None:
    """Rich's markup in a value is shown as it is written."""
    out = io.StringIO()
    Console(file=out, width=200).print(cell("[red]x[/red] [link=http://evil]y"))
    assert out.getvalue().strip() == "[red]x[/red] [link=http://evil]y"


def test_one_line_is_one_line() -> None:
    """A value for a table or a status line has no newlines."""
    assert one_line("a\nb\x1b[1A\r\n c") == "a b c"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("control", ["\x9d", "\x90\x9d", "\x1b]", "\x9b", "\x9e;"])
def test_many_openings_take_linear_time(control: str) -> None:
    """A long line of control strings that do not end is cleared at once."""
    assert not set(safe(control * 100_000)) & set(control) - {";"}
