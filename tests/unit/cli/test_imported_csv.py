"""CSV files as people have them, read into points."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from trainwire.cli.transfer.messages import messages_of
from trainwire.cli.transfer.readers.csv_file import csv_run
from trainwire.cli.transfer.runs import Tally
from trainwire.schemas.wire.messages import Completion, Metrics, Point
from trainwire.stack.errors import Problem


def read(tmp_path: Path, content: str | bytes) -> tuple[list[Point], Tally]:
    """Return the points of a file with this content, and the counts."""
    path = tmp_path / "run.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    tally = Tally()
    messages = list(messages_of(csv_run(path, None, ""), tally))
    points = [each for message in messages if isinstance(message.body, Metrics) for each in message.body.points]
    assert tally.taken["points"] == sum(len(point.values) for point in points)
    return points, tally


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("step,loss\n1,0.5\n", (None, 1, {"loss": 0.5})),
        ("\ufeffStep,loss\r\n1.0,0.5\r\n", (None, 1, {"loss": 0.5})),
        ("epoch;step;loss\n3;1;5e-1\n", (3, 1, {"loss": 0.5})),
        ("step\tloss\n\t0.5", (None, None, {"loss": 0.5})),
        ('"step","train/loss"\n"1","0.5"\n', (None, 1, {"train/loss": 0.5})),
        ("Wall time,Step,Value\n1700000001.5,1,0.5\n", (None, 1, {"Value": 0.5})),
        ("name,step,value\nloss,1,0.5\nacc,1,0.25\n", (None, 1, {"loss": 0.5, "acc": 0.25})),
        ("step,loss,note\n1,0.5\n", (None, 1, {"loss": 0.5})),
        ("_step,_timestamp,loss\n1,1700000001.5,0.5\n", (None, 1, {"loss": 0.5})),
        ("iteration,global_step,loss\n7,1,0.5\n", (None, 1, {"loss": 0.5, "iteration": 7.0})),
        ("step;time;loss;x\n1;1700000001,5;0,5;-1,5e-1\n", (None, 1, {"loss": 0.5, "x": -0.15})),
        ("name;step;value\nloss;1,0;0,5\n", (None, 1, {"loss": 0.5})),
    ],
)
def test_forms_of_a_header(tmp_path: Path, content: str, expected: tuple[object, ...]) -> None:
    """Wide and long, with a byte order mark, other delimiters, quotes and short rows."""
    (point,), tally = read(tmp_path, content)
    assert (point.epoch, point.step, point.values) == expected
    assert not any(tally.skipped.values())
    assert tally.taken["files"] == 1


def test_times_are_iso_or_seconds_and_else_that_of_the_file(tmp_path: Path) -> None:
    """A time without a zone is in UTC."""
    header = "time,loss\n"
    rows = ("1700000000.25", "2023-11-14T22:13:20", "2023-11-14 23:13:20+01:00", "2023-11-14T22:13:20.000001Z")
    points, _ = read(tmp_path, header + "".join(f"{row},1\n" for row in rows))
    second = 1_700_000_000 * 10**9
    assert [point.ts - second for point in points] == [250_000_000, 0, 0, 1000]
    assert read(tmp_path, "step,loss\n1,1\n")[0][0].ts == second


@pytest.mark.parametrize(
    ("content", "ended"),
    [
        ("time,loss\n1600000000.25,1\n", 1_600_000_000_250_000_000),
        ("name,step,value,time\nloss,1,0.5,1600000000.25\nacc,1,0.25,1600000000.25\n", 1_600_000_000_250_000_000),
        ("time,loss\n1600000000.25,1\n1600000001,1\n", 1_600_000_001_000_000_000),
        ("step,loss\n1,1\n", 1_700_000_000 * 10**9),
        ("time,loss\n", 1_700_000_000 * 10**9),
    ],
)
def test_the_end_is_the_time_of_the_last_point(tmp_path: Path, content: str, ended: int) -> None:
    """A run of one point ends at its time; one without times or points ends when its file was last changed."""
    path = tmp_path / "run.csv"
    path.write_text(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    *_, last = messages_of(csv_run(path, None, ""), Tally())
    assert isinstance(last.body, Completion)
    assert last.body.ts == ended


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,2024-01-01,text", "not a number, column 'loss'"),
        ("1,2024-01-01,0.5,9", "more cells than the header has"),
        ("x,2024-01-01,0.5", "step or epoch is not a whole number"),
        ("1.5,2024-01-01,0.5", "step or epoch is not a whole number"),
        ("nan,2024-01-01,0.5", "step or epoch is not a whole number"),
        (f"{2**64}.0,2024-01-01,0.5", "step or epoch is not a whole number"),
        ('"1,5",2024-01-01,0.5', "step or epoch is not a whole number"),
        ('1,2024-01-01,"0,5"', "not a number, column 'loss'"),
        (f"{2**64},2024-01-01,0.5", "step or epoch is not a whole number"),
        ("1,yesterday,0.5", "time is neither ISO 8601 nor seconds since 1970"),
        ("1,,0.5", "time is neither ISO 8601 nor seconds since 1970"),
        ("1,1700000000000000,0.5", "time is out of range"),
        ("1,3000-01-01,0.5", "time is out of range"),
        ("1,0900-01-01,0.5", "time is out of range"),
        ("1,nan,0.5", "time is neither ISO 8601 nor seconds since 1970"),
        (f"1,2024-01-01,{'x' * 10_000_000}", "not a number, column 'loss'"),
        ("1,2024-01-01,-1e400", "number beyond the range of a float (1.8e308), column 'loss'"),
    ],
)
def test_a_value_that_cannot_be_stored_is_counted(tmp_path: Path, row: str, reason: str) -> None:
    """Its reason is counted, and the rows after it are read."""
    points, tally = read(tmp_path, f"step,time,loss\n{row}\n2,2024-01-01,nan\n")
    assert tally.skipped["points"] == {reason: 1}
    assert math.isnan(points[-1].values["loss"])


def test_a_number_beyond_a_float_is_not_an_infinity(tmp_path: Path) -> None:
    """It is skipped with its reason, in both forms; cells that name infinity are values."""
    points, tally = read(tmp_path, f"step,a,b,c\n1,1e400,inf,-Infinity\n2,1{'0' * 400},1,nan\n")
    assert points[0].values == {"b": math.inf, "c": -math.inf}
    assert list(points[1].values) == ["b", "c"]
    assert tally.skipped["points"] == {"number beyond the range of a float (1.8e308), column 'a'": 2}
    points, tally = read(tmp_path, "step,name,value\n1,a,1e400\n2,a,Infinity\n")
    assert [point.values for point in points] == [{"a": math.inf}]
    assert tally.skipped["points"] == {"number beyond the range of a float (1.8e308)": 1}


def test_epochs_with_fractions_are_kept_as_a_metric(tmp_path: Path) -> None:
    """As Transformers' history has them: the point is in the current epoch; the long form gives the same."""
    points, tally = read(tmp_path, "loss,epoch,step\n3,0,0\n2,0.5,10\n1,1.0,20\n0,nan,30\n0,inf,40\n9,,50\n")
    assert [(point.epoch, point.step, point.values) for point in points] == [
        (0, 0, {"loss": 3.0}),
        (1, 10, {"loss": 2.0, "epoch": 0.5}),
        (1, 20, {"loss": 1.0, "epoch": 1.0}),
        (None, 50, {"loss": 9.0}),
    ]
    assert tally.skipped["points"] == {"step or epoch is not a whole number": 2}
    points, tally = read(tmp_path, "name,value,epoch\nloss,1,0.5\nacc,2,0.5\nloss,3,0.75\nloss,4,1\nloss,5,nan\n")
    assert [(point.epoch, point.values) for point in points] == [
        (1, {"loss": 1.0, "acc": 2.0, "epoch": 0.5}),
        (1, {"loss": 3.0, "epoch": 0.75}),
        (1, {"loss": 4.0, "epoch": 1.0}),
    ]
    assert tally.skipped["points"] == {"step or epoch is not a whole number": 1}


def test_numbers_are_those_of_other_tools(tmp_path: Path) -> None:
    """The underscores of Python's numbers are refused everywhere; spaces and names of infinities are accepted."""
    points, tally = read(tmp_path, "step,loss\n 1 , 2 \n2,1_0\n1_0,1\n3,infinity\n4,+1.\n")
    assert [(point.step, point.values) for point in points] == [
        (1, {"loss": 2.0}), (3, {"loss": math.inf}), (4, {"loss": 1.0})
    ]  # fmt: skip
    assert tally.skipped["points"] == {"not a number, column 'loss'": 1, "step or epoch is not a whole number": 1}
    points, tally = read(tmp_path, "name,value,time\nloss,1_0,1700000000\nloss,1,1_700_000_000\n")
    assert (points, sum(tally.skipped["points"].values())) == ([], 2)


def test_a_time_since_the_start_is_a_metric(tmp_path: Path) -> None:
    """Ultralytics' column `time` has seconds since the start of the training: points have the file's time."""
    points, tally = read(tmp_path, "epoch,time,loss\n1,,3\n2,12.5,2\n3,1700000000,1\n")
    assert [(point.epoch, point.ts, point.values) for point in points] == [
        (1, 1_700_000_000 * 10**9, {"loss": 3.0}),
        (2, 1_700_000_000 * 10**9, {"time": 12.5, "loss": 2.0}),
        (3, 1_700_000_000 * 10**9, {"time": 1_700_000_000.0, "loss": 1.0}),
    ]
    assert not any(tally.skipped.values())
    (point,), _ = read(tmp_path, "name,step,value,time\nloss,1,0.5,12.5\n")
    assert (point.ts, point.values) == (1_700_000_000 * 10**9, {"loss": 0.5})
    (point,), _ = read(tmp_path, "time,loss\n12.5,0.5\n")
    assert (point.ts, point.values) == (12_500_000_000, {"loss": 0.5})


def test_bytes_that_are_no_utf8_are_no_number(tmp_path: Path) -> None:
    """A cell in another encoding is counted, and nothing else is lost."""
    points, tally = read(tmp_path, b"step,loss\n1,\xff\n2,\x000\n3,3\n")
    assert [point.step for point in points] == [3]
    assert tally.skipped["points"].total() == 2
    points, tally = read(tmp_path, b"step,name,value\n1,l\xf6ss,1\n2,loss,2\n")
    assert [point.values for point in points] == [{"loss": 2.0}]
    assert tally.skipped["points"] == {"name is not UTF-8": 1}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_quote_that_takes_the_rest_of_the_file_is_a_problem(tmp_path: Path, end: str) -> None:
    """What comes before it is read; the file does not count as read, and the line is named."""
    points, tally = read(tmp_path, f'step,loss\n1,1\n2,"2\n3,3\n4,4{end}')
    assert [point.step for point in points] == [1]
    assert tally.taken["files"] == 0
    assert "line 3: a quote is not closed, so the lines after it are not read" in tally.problems[0]
    points, tally = read(tmp_path, f'step,loss\n1,1\n2,"2"{end}')
    assert ([point.step for point in points], tally.problems) == ([1, 2], [])


def test_a_quote_that_is_not_closed_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before is read, and the line is named."""
    monkeypatch.setattr("trainwire.cli.transfer.readers.csv_file.MAX_CELL_CHARS", 1000)
    points, tally = read(tmp_path, 'step,loss\n1,1\n2,"2\n' + "3,3\n" * 1000)
    assert [point.step for point in points] == [1]
    assert "is a quote before it not closed?" in tally.problems[0]
    assert tally.skipped["files"] == {"read up to an error": 1}


def test_a_pipe_is_named(tmp_path: Path) -> None:
    """What can be read only once cannot be imported."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Problem, match="is not a file"):
        csv_run(tmp_path / "pipe", None, "")


def test_a_column_without_a_name_is_counted(tmp_path: Path) -> None:
    """The index that pandas writes is no metric."""
    points, tally = read(tmp_path, ",step,loss\n0,1,0.5\n")
    assert points[0].values == {"loss": 0.5}
    assert tally.skipped["points"] == {"column without a name": 1}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "has no header"),
        ("\n\n", "has no header"),
        ("loss,acc\n1,2\n", "'loss', 'acc'"),
        ("step,epoch\n1,2\n", "'step', 'epoch'"),
        ("step,loss,loss\n1,2,3\n", "two columns 'loss'"),
        ("step," + "x" * 1001 + "\n", "1,001 characters"),
        ("step,loss\n1,2\n".encode("utf-16"), "iconv"),
        ("step,l\u00f6ss\n1,2\n".encode("latin-1"), "is not UTF-8, so a column would be called 'l\ufffdss'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "expected a header"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, content: str | bytes, named: str) -> None:
    """Before anything is sent, the error has the path, the value and the form that is expected."""
    with pytest.raises(Problem) as caught:
        read(tmp_path, content)
    assert named in str(caught.value)
    assert str(tmp_path / "run.csv") in str(caught.value)


def test_the_same_content_makes_the_same_messages(tmp_path: Path) -> None:
    """A second import has the numbers of the first; another content is another job."""
    path = tmp_path / "run.csv"
    path.write_text("step,loss\n" + "".join(f"{step},{step}\n" for step in range(3500)))
    first, second = (list(messages_of(csv_run(path, None, ""), Tally())) for _ in range(2))
    assert first == second
    assert [message.seq for message in first] == [1, 2, 3, 4, 5, 1]
    path.write_text("step,loss\n1,1\n")
    assert csv_run(path, None, "").job_id != first[0].job_id != csv_run(path, None, "2").job_id


def test_a_loop_of_links_is_named(tmp_path: Path) -> None:
    """A link to itself is an unreadable file, not an internal error."""
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    with pytest.raises(Problem, match=r"cannot read .*loop\.csv: Too many levels of symbolic links"):
        csv_run(loop, None, "")
