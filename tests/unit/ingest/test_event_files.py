"""Event files of TensorBoard, read while they are written."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.processes import wait_until
from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.event_files import EventFiles
from trainwire.ingest.hooks.tensorboard_events import DamagedEventError, EventDecoder
from trainwire.testing import RecordedRun


def field(number: int, value: bytes | int) -> bytes:
    """Return a field of a protocol buffer: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(number: int) -> bytes:
    """Return a number of variable length."""
    number &= (1 << 64) - 1
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def scalar(tag: str, value: float, step: int, time: float = 4e9) -> bytes:
    """Return an event that holds one number."""
    summary = field(1, field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
    return b"\x09" + struct.pack("<d", time) + field(2, step) + field(5, summary)


def tensor(tag: str, value: bytes, plugin: str = "", step: int = 1) -> bytes:
    """Return an event that holds a tensor, for a plugin."""
    metadata = field(9, field(1, field(1, plugin.encode()))) if plugin else b""
    return field(2, step) + field(5, field(1, field(1, tag.encode()) + metadata + field(8, value)))


def record(event: bytes) -> bytes:
    """Return an event as it stands in a file."""
    return struct.pack("<Q", len(event)) + b"crc1" + event + b"crc2"


def test_scalars_have_both_forms() -> None:
    """A number is a simple value, or a tensor whose plugin only its first event names."""
    decoder = EventDecoder()
    first = decoder.decode(tensor("loss", field(1, 1) + field(4, struct.pack("<f", 0.5)), "scalars"))
    second = decoder.decode(tensor("loss", field(1, 1) + field(5, struct.pack("<f", 0.25)), step=2))
    third = decoder.decode(scalar("accuracy", 0.75, -1))
    assert [first.scalars, second.scalars] == [{"loss": 0.5}, {"loss": 0.25}]
    assert (third.scalars, third.step, third.ts) == ({"accuracy": 0.75}, -1, 4_000_000_000 * 10**9)


SHAPES = {(): field(2, b""), (1,): field(2, field(2, field(1, 1))), (1, 1): field(2, field(2, field(1, 1)) * 2)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "value", "number"),
    [
        (1, field(4, struct.pack("<f", 0.5)), 0.5),
        (1, field(5, struct.pack("<f", 0.5)), 0.5),
        (1, b"\x2d" + struct.pack("<f", 0.5), 0.5),
        (1, b"", 0.0),
        (2, field(6, struct.pack("<d", 0.1)), 0.1),
        (3, field(7, varint(-3)), -3.0),
        (3, field(7, 5), 5.0),
        (4, field(4, b"\xff"), 255.0),
        (5, field(4, struct.pack("<h", -2)), -2.0),
        (9, field(10, varint(1 << 40)), float(1 << 40)),
        (9, field(4, struct.pack("<q", -1)), -1.0),
        (10, field(11, b"\x01"), 1.0),
        (10, field(4, b"\x00"), 0.0),
        (14, field(13, varint(0x3FC0)), 1.5),
        (14, field(4, b"\xc0\x3f"), 1.5),
        (19, field(13, varint(0x3E00)), 1.5),
        (19, field(4, b"\x00\x3e"), 1.5),
        (22, field(16, varint((1 << 32) - 1)), float((1 << 32) - 1)),
        (23, field(17, varint((1 << 64) - 1)), float((1 << 64) - 1)),
    ],
)
def test_a_tensor_with_one_number_is_a_scalar(
    shape: tuple[int, ...], dtype: int, value: bytes, number: float
) -> None:
    """A tensor of each numeric type, with its number in each form, is its number."""
    event = EventDecoder().decode(tensor("loss", field(1, dtype) + SHAPES[shape] + value, "scalars"))
    assert (event.scalars, event.not_taken) == ({"loss": number}, [])


@pytest.mark.parametrize(
    "value",
    [
        field(1, 3) + field(2, field(2, field(1, 2))) + field(7, varint(3) + varint(4)),
        field(1, 3) + field(7, varint(3) + varint(4)),
        field(1, 3) + field(7, 3) + field(7, 4),
        field(1, 1) + field(5, struct.pack("<2f", 1, 2)),
        field(1, 1) + field(4, struct.pack("<2f", 1, 2)),
        field(1, 1) + field(2, field(2, field(1, 3))) + field(5, struct.pack("<f", 1)),
        field(1, 1) + field(2, field(2, b"")),
        field(1, 7) + field(8, b"text"),
        field(1, 8) + field(9, struct.pack("<2f", 1, 2)),
        field(1, 10) + field(4, b"\0\1"),
        b"",
    ],
)
def test_other_tensors_are_counted(value: bytes) -> None:
    """Several numbers, also those that one value stands for, none, texts and complex numbers are no scalar."""
    event = EventDecoder().decode(tensor("loss", value, "scalars"))
    assert (event.scalars, event.not_taken) == ({}, ["scalar"])


def test_texts_are_taken_and_images_counted() -> None:
    """A text is not a number, and a value of another plugin is named."""
    decoder = EventDecoder()
    note = decoder.decode(tensor("note", field(8, b"<b>\xff"), "text"))
    assert note.texts == [("note", "<b>\N{REPLACEMENT CHARACTER}")]
    assert decoder.decode(tensor("picture", field(8, b"png"), "images")).not_taken == ["image"]
    assert decoder.decode(field(5, field(1, field(1, b"weights") + field(5, b"")))).not_taken == ["histogram"]


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x2a\x7f", b"\x0b", field(5, field(1, b"\x15\x00"))])
def test_damaged_bytes_are_named(data: bytes) -> None:
    """Bytes that are no event raise one kind of error."""
    with pytest.raises(DamagedEventError):
        EventDecoder().decode(data)


@pytest.fixture
def run() -> RecordedRun:
    """Give a run in memory."""
    return RecordedRun(1)


def test_files_are_followed_from_their_first_byte(run: RecordedRun, tmp_path: Path) -> None:
    """Records that are cut in half are read once they are whole; files of an earlier run are not read."""
    (tmp_path / "events.out.tfevents.1.earlier").write_bytes(record(scalar("loss", 9.0, 9)))
    files = EventFiles([tmp_path], Caught(run, lambda _: run))
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "events.out.tfevents.2.now"
    whole = record(scalar("loss", 1.0, 1)) + record(scalar("loss", 0.5, 2))
    with path.open("wb", buffering=0) as file:
        file.write(whole[:-7])
        wait_until(lambda: len(run.points) == 1, "the first event", 10)
        file.write(whole[-7:] + record(scalar("loss", 0.25, 3))[:20])
        wait_until(lambda: len(run.points) == 2, "the second event", 10)
    files.close(10)
    points = [(point.step, dict(point.values)) for point in run.points]
    assert points == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5})]


def test_a_damaged_file_ends_itself_alone(run: RecordedRun, tmp_path: Path) -> None:
    """Other files are read on, and the damaged one is named; a pipe is not opened, for its end never comes."""
    caught = Caught(run, lambda _: run)
    files = EventFiles([tmp_path], caught)
    os.mkfifo(tmp_path / "events.out.tfevents.0.pipe")
    (tmp_path / "events.out.tfevents.1.bad").write_bytes(b"\xff" * 100)
    (tmp_path / "events.out.tfevents.2.good").write_bytes(record(scalar("loss", 1.0, 1)))
    files.close(10)
    assert len(run.points) == 1
    assert "events.out.tfevents.1.bad" in str(caught.sentence())


def test_folders_of_hooked_writers_are_not_read_again(run: RecordedRun, tmp_path: Path) -> None:
    """An event that came by a hook is not taken from its file as well."""
    caught = Caught(run, lambda _: run)
    caught.event(str(tmp_path), EventDecoder().decode(scalar("loss", 1.0, 1)), None)
    files = EventFiles([tmp_path], caught)
    (tmp_path / "events.out.tfevents.1.x").write_bytes(record(scalar("loss", 1.0, 1)))
    files.close(10)
    assert len(run.points) == 1


def test_events_of_an_earlier_run_are_counted_alone(run: RecordedRun, tmp_path: Path) -> None:
    """A file of another training that is copied into the folder adds no metrics, parameters, texts or images."""
    caught = Caught(run, lambda _: run)
    files = EventFiles([tmp_path], caught)
    old = b"\x09" + struct.pack("<d", 1.7e9)
    pair = field(1, field(1, b"lr") + field(2, b"\x11" + struct.pack("<d", 0.5)))
    hparams = field(9, field(1, field(1, b"hparams") + field(2, field(3, pair))))
    events = [
        old,
        scalar("loss", 1.0, 1, time=1.7e9),
        old + tensor("note", field(8, b"words"), "text"),
        old + field(5, field(1, field(1, b"_hparams_/session_start_info") + hparams)),
        old + tensor("picture", b"", "images"),
    ]
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"".join(map(record, events)))
    files.close(10)
    assert (run.points, run.lines, run.params) == ([], [], {})
    assert "4 of event of an earlier run" in str(caught.sentence())
