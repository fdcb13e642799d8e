"""Files of W&B, read for an import."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cli.wandb_files import (
    START_S,
    exit_record,
    file_of,
    history,
    item,
    output,
    record,
    run_record,
    set_age,
    time_of,
    wandb_file,
)  # fmt: skip
from tests.unit.ingest.test_event_files import field
from trainwire.cli.transfer.messages import messages_of
from trainwire.cli.transfer.readers import wandb_file as reader
from trainwire.cli.transfer.readers.wandb_about import records_of_kind
from trainwire.cli.transfer.readers.wandb_file import BLOCK_BYTES, CutShortError, DamagedFileError, wandb_records
from trainwire.cli.transfer.readers.wandb_history import RowDecoder
from trainwire.cli.transfer.readers.wandb_runs import wandb_runs
from trainwire.cli.transfer.readers.wandb_values import item_of, json_value, row_of
from trainwire.cli.transfer.runs import LeftOut, SourceRun, Tally
from trainwire.ingest.hooks.protobuf import ProtobufError, fields
from trainwire.schemas.wire.messages import Completion, Logs, Metrics, Point
from trainwire.stack.errors import Problem


class Read:
    """The only run of a path, with all that its messages have."""

    def __init__(self, path: Path) -> None:
        (run,) = wandb_runs(path, None, "")
        assert isinstance(run, SourceRun), run
        self.run, self.tally = run, Tally()
        bodies = [message.body for message in messages_of(run, self.tally)]
        metrics = [body for body in bodies if isinstance(body, Metrics)]
        self.header = metrics[0]
        self.points: list[Point] = [point for body in metrics for point in body.points]
        self.params = [body.params for body in metrics if body.params is not None][-1]
        logs = [body for body in bodies if isinstance(body, Logs)]
        self.lines = [(body.log_type, line) for body in logs for line in body.lines]
        (self.end,) = (body for body in bodies if isinstance(body, Completion))


def read_all(path: Path) -> None:
    """Read the messages of all runs."""
    for each in wandb_runs(path, None, ""):
        if isinstance(each, SourceRun):
            list(messages_of(each, Tally()))


def left_out(path: Path) -> str:
    """Return why the only run of a path is not imported."""
    (run,) = wandb_runs(path, None, "")
    assert isinstance(run, LeftOut)
    return run.reason


@pytest.mark.parametrize("size", [0, 1, 7, BLOCK_BYTES - 14, BLOCK_BYTES - 15, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_records_are_read_across_blocks(tmp_path: Path, size: int) -> None:
    """A record of any size is read, wherever a block of the file ends."""
    generator = random.Random(size)
    records = [generator.randbytes(max(0, size - offset)) for offset in range(10)] + [b"last"]
    path = wandb_file(tmp_path / "run.wandb", *records)
    assert list(wandb_records(path, path.stat().st_size)) == records


def test_each_cut_of_a_file_gives_what_comes_before(tmp_path: Path) -> None:
    """Wherever a file ends, the records before are read, and the rest is named as cut short."""
    records = [b"first", b"second" * 6000, b"third"]
    content = file_of(records)
    path = tmp_path / "run.wandb"
    path.write_bytes(content)
    ends = {len(file_of(records[:count])) for count in range(4)}
    for size in [
        *range(40),
        *range(BLOCK_BYTES - 9, BLOCK_BYTES + 9),
        *range(len(content) - 30, len(content) + 1),
    ]:
        found: list[bytes] = []
        try:
            found.extend(wandb_records(path, size))
            assert size in ends | {0}
        except CutShortError:
            assert size not in ends
        assert found == records[: len(found)]


@settings(max_examples=50)
@given(st.binary(max_size=80), st.integers(0, 200))
def test_damaged_bytes_are_never_another_error(noise: bytes, at: int) -> None:
    """Any bytes in the place of records are read, or named as damaged."""
    content = file_of([run_record(lr=0.1), history(1, {"loss": 0.5}), exit_record(0)])
    content = content[:at] + noise + content[at + len(noise) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.wandb")
        path.write_bytes(content)
        set_age(path, 3600)
        read_all(path)


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_hostile_records_with_right_checksums_are_named(content: bytes) -> None:
    """A record that holds other bytes than its kind needs ends the file, and raises nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in (2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 18):
            read_all(wandb_file(Path(folder, "run.wandb"), run_record(), record(kind, content), exit_record(0)))


def test_a_record_without_bounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that belong together are not collected for ever."""
    monkeypatch.setattr(reader, "MAX_RECORD_BYTES", 100_000)
    path = wandb_file(tmp_path / "run.wandb", bytes(200_000))
    with pytest.raises(DamagedFileError, match="more than 100,000 bytes"):
        list(wandb_records(path, path.stat().st_size))


def test_a_run_is_read_as_it_was_logged(tmp_path: Path) -> None:
    """Name, tags, config, history, output, statistics, summary and end are those of the file."""
    summary = field(1, item("best", "0.9")) + field(1, item(("loss",), "0.25")) + field(1, item("note", '"x"'))
    files = field(1, field(1, b"media/a.png"))
    stats = field(2, time_of(1.5)) + field(3, item("gpu.0.temp", "61.5"))
    path = wandb_file(
        tmp_path / "offline-run-1" / "run-abc123.wandb",
        run_record(name="brisk", lr=0.1, layers=[8, 8], api_key="secret", _wandb={"v": 1}),
        history(0, {"loss": 1, "accuracy": 0.5}, 0.25),
        record(7, stats),
        output("epoch 1\nepo", 2),
        output("warning", 2, is_stderr=True),
        output("ch 2\n\rstep 1\rstep 2", 3),
        history(500, {"loss": "NaN", "bad": '"Infinity"', "nested": {"a": 1, "b": {"c": True}}}, 5),
        record(5, field(1, item("epochs", "3"))),
        record(6, files),
        record(6, files),
        record(8, field(5, b"model")),
        record(10, field(1, b"hot") + field(2, b"very")),
        record(3, summary),
        exit_record(0, 60),
    )
    read = Read(path)
    assert (read.header.name, read.header.started_at) == ("brisk", START_S * 10**9)
    assert read.header.tags == {
        "wandb.project": "digits", "wandb.group": "group-1", "wandb.notes": "a note", "wandb.tags": "base",
        "imported_from": "wandb run abc123",
    }  # fmt: skip
    assert read.params == {"lr": 0.1, "layers": [8, 8], "api_key": "***", "epochs": 3}
    first, statistics, last = read.points
    assert (first.step, first.ts, first.values) == (0, START_S * 10**9 + 250_000_000, {"loss": 1, "accuracy": 0.5})
    assert (statistics.step, statistics.values) == (None, {"system/gpu.0.temp": 61.5})
    assert math.isnan(last.values.pop("loss"))
    assert (last.step, last.values) == (500, {"bad": math.inf, "nested.a": 1, "nested.b.c": 1})
    assert read.lines == [
        ("stdout", "epoch 1"), ("stdout", "epoch 2"), ("stderr", "W&B alert: hot: very"), ("stdout", "step 2"),
        ("stderr", "warning"),
    ]  # fmt: skip
    assert (read.end.status, read.end.exit_code, read.end.ts) == ("completed", 0, (START_S + 60) * 10**9)
    assert read.end.final_metrics == {"best": 0.9, "loss": 0.25}
    assert read.tally.taken == {"points": 7, "lines": 5, "files": 1}
    assert read.tally.skipped["files"] == {"files and artifacts stay with W&B": 2}


def test_other_values_are_counted_by_kind(tmp_path: Path) -> None:
    """A histogram, table, text, list or null is one skipped point each, in both forms of nested values."""
    values = {"a": "text", "b": [1], "c": None, "d": {"_type": "table-file", "x": 1}, "e": {"f": "text", "g": 2}}
    nested = field(1, item(("h", "_type"), '"histogram"')) + field(1, item(("h", "bins"), "[1]"))
    texts = {name: json.dumps(value) for name, value in values.items()}
    path = wandb_file(
        tmp_path / "run.wandb",
        run_record(),
        history(
            0,
            texts
            | {
                "broken": "{",
                "deep": "[" * 100_000,
                "huge": "9" * 4000,
                "inf": "-Infinity",
                "in": '{"it": -1e400, "big": 1' + "0" * 400 + "}",
                "long" * 300: 1,
            },
        ),
        record(2, nested + field(1, item(("_timestamp",), str(START_S))) + field(2, b"")),
        history(1, {"late": 1}, 1e15),
        exit_record(0),
    )
    read = Read(path)
    assert [dict(point.values) for point in read.points] == [{"e.g": 2.0, "inf": -math.inf}]
    assert read.tally.skipped["points"] == {
        "text: not a number": 2, "list: not a number": 1, "empty value: not a number": 1,
        "table-file: not a number": 1, "unreadable value: not a number": 2, "histogram: not a number": 1,
        "number beyond the range of a float (1.8e308)": 3, "name over 1,000 characters": 1,
        "time is out of range": 1,
    }  # fmt: skip


def test_typed_values_of_newer_versions_are_read() -> None:
    """Without a JSON text the typed fields count; numbers of any form are the same."""
    typed = {4: field(4, 1), 5: field(5, 7), 6: b"\x31" + bytes.fromhex("000000000000e03f"), 7: field(7, b"x")}
    items = [item_of(field(2, str(number).encode()) + value) for number, value in typed.items()]
    row = row_of(items)
    assert (row.numbers, row.others) == ({"4": 1.0, "5": -4.0, "6": 0.5}, ["text"])


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"[1, 2.5]", [1, 2.5]),
        (b"123456789012345678901234567890", 1.2345678901234568e29),
        (b'"\\ud800"', "?"),
        (b'{"lr": 1e400, "n": 9' + b"9" * 400 + b"}", {"lr": "1e400", "n": "9" * 401}),
        (b"{", "{"),
        (b"\xff", "\ufffd"),
        (b"[" * 60 + b"]" * 60, "[" * 60 + "]" * 60),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_parameters_can_always_be_stored(raw: bytes, value: Any) -> None:
    """What a message cannot hold is kept as text, or as the nearest number."""
    assert json_value(raw) == value


def test_rows_of_numbers_are_read_as_by_the_full_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in any order, with new, missing, nested and other values, give the same points without the pattern."""
    shuffle = random.Random(16).sample
    rows: list[bytes] = []
    for step in range(600):
        texts: dict[tuple[str, ...], str] = {
            ("loss",): f"{1 / (step + 1)!r}",
            ("_step",): str(step),
            ("_runtime",): f"{step * 1e-3!r}",
        }
        texts |= {("_timestamp",): f"{1.7e9 + step!r}"} if step % 7 else {}
        texts |= {("val", "acc"): "1e-05", ("val.loss",): "-2"} if step > 50 and step % 3 == 0 else {}
        texts |= (
            {("note",): '"text"'} if step % 10 == 9 else {("big",): "9" * (step % 130)} if step % 10 == 8 else {}
        )
        texts |= {("loss",): '"Infinity"'} if step % 11 == 10 else {}
        texts |= {("loss",): "1e999"} if step % 13 == 12 else {}
        items = shuffle([item(names, raw) for names, raw in texts.items()], len(texts))
        content = b"".join(field(1, each) for each in items)
        rows.append(record(2, content + field(2, field(1, step * 5) if step else b"")))
    path = wandb_file(tmp_path / "run-x.wandb", run_record(), *rows, exit_record(0))
    decoded: list[Any] = []
    decode = RowDecoder.decode

    def noted(decoder: RowDecoder, data: bytes) -> Any:
        decoded.append(decode(decoder, data))
        return decoded[-1]

    monkeypatch.setattr(RowDecoder, "decode", noted)
    fast, fast_tally = items_of(path)
    monkeypatch.setattr(RowDecoder, "decode", lambda *_: None)
    full, full_tally = items_of(path)
    assert fast == full
    assert fast_tally.skipped == full_tally.skipped
    assert len(decoded) - decoded.count(None) > 400


def test_a_record_with_a_wrong_length_is_never_decoded_by_the_pattern() -> None:
    """Each change of a byte gives either None or what the full decoder returns."""
    sound = history(300, {"loss": 0.125, "val": -3, "val2": 2.5e-05}, 1.5)
    (content,) = (value for number, value in fields(sound) if number == 2)
    decoder = RowDecoder()
    decoder.learn(value for number, value in fields(content) if number == 1)
    assert decoder.decode(sound) == fully_decoded(sound)
    decoded = 0
    for at in range(len(sound)):
        for byte in range(256):
            changed = sound[:at] + bytes((byte,)) + sound[at + 1 :]
            if (found := decoder.decode(changed)) is not None:
                assert found == fully_decoded(changed)
                decoded += 1
    assert decoded > 256


NAMES = st.sampled_from((
    *[("loss",), ("val", "acc"), ("val.acc",), ("_runtime",), ("_timestamp",), ("_wandb", "runtime"), ("_step",)],
    *[("h", "_type"), ("_type",), ("_timestamp", "x"), ("",), ("\x82\x01",), ("n" * 110,)],
))  # fmt: skip
NUMBERS = st.floats().map(repr) | st.integers().map(str)
VALUES = NUMBERS | st.sampled_from((
    *['"NaN"', '"-Infinity"', "NaN", "-0.0", "1e999", '"text"', "null", "", " 1", "1_0", "[1]", "9" * 130],
    *["\x82\x01", "0.5\n"],
))  # fmt: skip
ITEMS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=5)
ROWS = st.lists(st.tuples(st.booleans(), ITEMS | st.none(), st.integers(0, 2**21)), max_size=30)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_any_rows_are_read_as_by_the_full_decoder(rows: list[tuple[bool, Any, int]]) -> None:
    """History and summary records with any items, in any order and repeated, give the same points and results."""
    records, items = [], b""
    for is_history, pairs, step in rows:
        if pairs is not None:  # else the items of the record before
            items = b"".join(
                field(1, item(names[0] if is_flat and len(names) == 1 else names, raw))
                for names, raw, is_flat in pairs
            )
        end = field(2, field(1, step) if step else b"") if is_history and step % 5 else b""
        records.append(record(2 if is_history else 3, items + end))
    assert_same_as_full(records)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_of_rows_are_read_as_by_the_full_decoder(data: st.DataObject) -> None:
    """Rows with bytes that were replaced, added or left out give the same points, results and problems."""
    items = b"".join(field(1, item(name, raw)) for name, raw in (("loss", "0.25"), ("_timestamp", "1.7e9")))
    rows = [record(2, items + field(2, field(1, 300))), record(3, items)]
    changed = []
    for _ in range(10):
        row = data.draw(st.sampled_from(rows))
        at = data.draw(st.integers(0, len(row)))
        noise = data.draw(st.sampled_from([b"", b"\n", b"\x82\x01", b"\x12", b"1", *rows]) | st.binary(max_size=3))
        changed += [row[:at] + noise + row[at + data.draw(st.integers(0, 3)) :], row]
    assert_same_as_full(rows * 2 + changed)


def test_names_that_join_to_the_same_one_are_read_as_by_the_full_decoder() -> None:
    """Of a nested name and a name with a dot the same one counts, in any order."""
    items = [field(1, item(("val", "acc"), "1")), field(1, item(("val.acc",), "2"))]
    rows = [record(2, each + field(2, field(1, 3))) for each in (*items, items[0] + items[1], items[1] + items[0])]
    assert_same_as_full(rows * 3)


def test_a_row_without_its_last_byte_is_damaged() -> None:
    """The last value of a summary that lacks a byte is no number."""
    items = field(1, item(("loss",), "0.25"))
    assert_same_as_full([record(3, items), record(3, items), record(3, items[:-1])])


def assert_same_as_full(records: list[bytes]) -> None:
    """Compare what is read of these records with what is read of them without `RowDecoder`."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = wandb_file(Path(folder, "run.wandb"), run_record(), *records, exit_record(0))
        fast, fast_tally = items_of(path)
        patch.setattr(RowDecoder, "decode", lambda *_: None)
        full, full_tally = items_of(path)
    # As texts, because NaN is not equal to itself; the order of the values of a point has no meaning.
    assert repr(msgspec.to_builtins(fast, order="sorted")) == repr(msgspec.to_builtins(full, order="sorted"))
    assert fast_tally.skipped == full_tally.skipped
    assert bool(fast_tally.problems) == bool(full_tally.problems)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12) | st.integers(BLOCK_BYTES - 400, 2 * BLOCK_BYTES), max_size=9), st.randoms())
def test_runs_are_found_in_any_block(sizes: list[int], random_: random.Random) -> None:
    """Records of a run are found without reading the others, wherever a block ends, also after a long record."""
    records = []
    for size in sizes:
        records.append(
            record(random_.choice((2, 3, 13)), bytes(size) if random_.random() < 0.5 else b"\x8a\x01" * size)
        )
        records.append(record(17, field(1, b"x" * random_.choice((1, size)))))
    with tempfile.TemporaryDirectory() as folder:
        path = wandb_file(Path(folder, "run.wandb"), *records)
        found = list(records_of_kind(path, path.stat().st_size, 17))
    assert found == [value for each in records for number, value in fields(each) if number == 17]


def test_a_removed_summary_is_no_result(tmp_path: Path) -> None:
    """`del run.summary["x"]` is followed; a later value counts again."""
    path = wandb_file(
        tmp_path / "run.wandb",
        run_record(),
        *(record(3, field(1, item(("loss",), str(step))) + field(1, item(("x",), "1"))) for step in range(4)),
        record(3, field(2, item(("x",), ""))),
        record(3, field(2, item(("loss",), ""))),
        record(3, field(1, item(("loss",), "7"))),
        exit_record(0),
    )
    assert Read(path).end.final_metrics == {"loss": 7.0}


def items_of(path: Path) -> tuple[list[Any], Tally]:
    """Return the items of the only run in a file, and their counts."""
    (run,) = wandb_runs(path, None, "")
    assert isinstance(run, SourceRun)
    tally = Tally()
    return [*run.items(tally)], tally


def fully_decoded(data: bytes) -> tuple[int, dict[str, bytes], dict[str, float]]:
    """Decode a record of one step without the pattern."""
    (content,) = (value for number, value in fields(data) if number == 2)
    step = dict(fields(content))[2]
    named = {".".join(names): raw for names, raw in (item_of(value) for n, value in fields(content) if n == 1)}
    axes = {name: raw for name, raw in named.items() if name.startswith("_")}
    return dict(fields(step)).get(1, 0), axes, {name: float(named[name]) for name in named.keys() - axes.keys()}


def test_a_step_that_is_no_number_ends_the_file(tmp_path: Path) -> None:
    """The file is named, and what comes before is imported."""
    wrong = record(2, field(1, item("_step", '"x"')) + field(1, item("loss", "1")))
    path = wandb_file(tmp_path / "run.wandb", run_record(), history(0, {"loss": 1}), wrong, exit_record(0))
    read = Read(path)
    assert (len(read.points), read.tally.problems != []) == (1, True)


def test_a_nonzero_exit_code_is_a_failure(tmp_path: Path) -> None:
    """The code is kept, also a negative one."""
    path = wandb_file(tmp_path / "run.wandb", run_record(), exit_record(-9))
    end = Read(path).end
    assert (end.status, end.exit_code) == ("failed", -9)


def test_a_running_run_is_left_out(tmp_path: Path) -> None:
    """Without an end, a file that changed a moment ago is not imported; a quiet one is that of a killed run."""
    records = [run_record(), history(0, {"loss": 1})]
    path = wandb_file(tmp_path / "run.wandb", *records, age_s=5)
    assert "may still run" in left_out(path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "may still run" in left_out(path)
    wandb_file(path, *records, age_s=700)
    end = Read(path).end
    assert (end.status, end.error_message) == ("failed", "the .wandb file has no end: the process was killed")


def test_a_run_is_one_job_wherever_its_file_is(tmp_path: Path) -> None:
    """A grown, moved or copied file has the same number; another run or copy has another."""
    first = wandb_file(tmp_path / "a" / "run.wandb", run_record())
    number = Read(first).run.job_id
    grown = wandb_file(tmp_path / "b" / "run.wandb", run_record(), history(0, {"loss": 1}), exit_record(0))
    assert Read(grown).run.job_id == number
    assert Read(wandb_file(tmp_path / "c" / "run.wandb", run_record("other"))).run.job_id != number
    (tmp_path / "latest").symlink_to("a")
    assert Read(tmp_path / "latest").run.job_id == number
    runs = list(wandb_runs(tmp_path, None, ""))
    assert [type(run) for run in runs] == [SourceRun, LeftOut, SourceRun]
    copied = next(iter(wandb_runs(first, None, "2")))
    assert isinstance(copied, SourceRun)
    assert copied.job_id != number


def test_a_later_record_renames_the_run(tmp_path: Path) -> None:
    """`run.name = ...` counts, and does not make another run of it."""
    path = wandb_file(tmp_path / "run.wandb", run_record(lr=1), run_record(name="better"), exit_record(0))
    read = Read(path)
    assert (read.header.name, read.params) == ("better", {"lr": 1})
    assert read.run.job_id == Read(wandb_file(tmp_path / "run.wandb", run_record(lr=1))).run.job_id


def test_output_is_read_from_the_file_where_no_record_has_it(tmp_path: Path) -> None:
    """`files/output.log` counts only then."""
    path = wandb_file(tmp_path / "run.wandb", run_record(), exit_record(0))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "output.log").write_text("one\ntwo")
    assert Read(path).lines == [("stdout", "one"), ("stdout", "two")]
    path = wandb_file(tmp_path / "run.wandb", run_record(), output("three\n"), exit_record(0))
    assert Read(path).lines == [("stdout", "three")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b":W", "its header is cut short"),
        (b"SQLite format 3", "does not begin as a file of W&B"),
        (file_of([]), "the file has no run"),
        (file_of([b"\x8a\x01\x7f"]), "cut short"),
    ],
)
def test_a_file_without_a_run_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    """It is left out with the reason."""
    path = tmp_path / "run.wandb"
    path.write_bytes(content)
    set_age(path, 3600)
    assert reason in left_out(path)


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    """A missing folder, and one without files of W&B, are errors with the remedy."""
    for path, what in ((tmp_path / "no", "does not exist"), (tmp_path, r"no file \*.wandb below")):
        with pytest.raises(Problem, match=what):
            list(wandb_runs(path, None, ""))


@given(st.binary(max_size=40))
def test_fields_of_any_bytes_end(data: bytes) -> None:
    """Bytes are fields, or no message."""
    with contextlib.suppress(ProtobufError):
        assert len(list(fields(data))) <= len(data)


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    """A pipe has no end: below a folder it is passed over, and given as the path it is refused."""
    pipe = tmp_path / "pipe.wandb"
    os.mkfifo(pipe)
    with pytest.raises(Problem, match=r"no file \*\.wandb below"):
        list(wandb_runs(tmp_path, None, ""))
    with pytest.raises(Problem, match="is neither a file nor a folder"):
        list(wandb_runs(pipe, None, ""))
