"""Event files of TensorBoard, read for an import."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cli.event_files import event_file, image, scalar, text
from tests.unit.ingest.test_event_files import field, tensor
from trainwire.cli.transfer.messages import messages_of
from trainwire.cli.transfer.readers.checksums import masked_crc, masked_crcs
from trainwire.cli.transfer.readers.event_records import records
from trainwire.cli.transfer.readers.scalar_events import ScalarDecoder
from trainwire.cli.transfer.readers.tensorboard import tensorboard_runs
from trainwire.cli.transfer.runs import LeftOut, Tally
from trainwire.ingest.hooks.tensorboard_events import DamagedEventError, Event, EventDecoder
from trainwire.schemas.wire.messages import Point


def test_the_checksum_is_that_of_tensorflow() -> None:
    """CRC-32C of "123456789", of the standard, rotated and shifted as TensorFlow does."""
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@given(st.integers(1, 300).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1)))
def test_many_checksums_at_once_are_those_of_each(texts: list[bytes]) -> None:
    """Texts of one length have the checksums that they have one by one."""
    assert masked_crcs(texts) == [masked_crc(each) for each in texts]


def test_a_wrong_record_among_many_of_its_length_is_found(tmp_path: Path) -> None:
    """The records before it are read, and its place is named."""
    path = event_file(tmp_path, *(scalar("loss", 0.5, step) for step in range(100)))
    data = bytearray(path.read_bytes())
    data[-16 * 50] ^= 1
    path.write_bytes(data)
    found: list[bytes] = []
    with pytest.raises(DamagedEventError, match="the record at byte"):
        found.extend(records(path, len(data)))
    assert 50 < len(found) < 100


def point_of(event: Event | Point) -> Point:
    """Return the point of an event with numbers alone."""
    if isinstance(event, Point):
        return event
    assert (event.params, event.texts, event.not_taken) == ({}, [], [])
    return Point(ts=event.ts, step=event.step, values=event.scalars)


def tensors(tag: str, value: float, step: int) -> list[bytes]:
    """Return events that hold a number as a tensor: in each form, with and without metadata."""
    float32, float64 = struct.pack("<f", value), struct.pack("<d", value)
    contents = [field(1, 1) + field(4, float32), field(1, 1) + field(5, float32), field(1, 2) + field(6, float64)]
    head = b"\x09" + struct.pack("<d", 1e9 + step % 7)
    return [head + tensor(tag, content, kind, step) for content in contents for kind in ("scalars", "")]


NUMBERS = st.floats(width=32, allow_nan=False)


@given(st.text(max_size=140), NUMBERS, NUMBERS, st.integers(-(2**63), 2**63 - 1))
def test_later_events_of_a_tag_are_read_without_parsing(tag: str, first: float, second: float, step: int) -> None:
    """In each form of a number they give the same as the decoder that parses them."""
    decoder = ScalarDecoder("val/")
    for before, after in zip(
        [scalar(tag, first, 1), *tensors(tag, first, 1)],
        [scalar(tag, second, step), *tensors(tag, second, step)],
        strict=True,
    ):
        whole = EventDecoder().decode(after)
        decoder.decode(before)
        found = decoder.decode(after)
        if isinstance(found, Event):  # the bytes of the first number are elsewhere in the event, too
            assert found == whole
            continue
        values = {"val/" + tag: number for tag, number in whole.scalars.items()}
        assert found == Point(ts=whole.ts, step=whole.step, values=values)


@pytest.mark.parametrize("form", range(7))
def test_every_form_of_a_number_is_learned(form: int) -> None:
    """The second event of a tag is read without parsing, NaN included."""
    decoder = ScalarDecoder("")
    forms = [
        [scalar("loss", number, step), *tensors("loss", number, step)] for step, number in enumerate((0.25, 1))
    ]
    assert isinstance(decoder.decode(forms[0][form]), Event)
    assert isinstance(decoder.decode(forms[1][form]), Point)
    missing = decoder.decode(scalar("loss", math.nan, 2) if not form else tensors("loss", math.nan, 2)[form - 1])
    assert isinstance(missing, Point)
    assert math.isnan(missing.values["loss"])


def test_events_with_several_numbers_are_learned() -> None:
    """Merged summaries, with all metrics of a step in one event, are read without parsing too."""

    def event(*numbers: float) -> bytes:
        summary = b"".join(
            field(1, field(1, b"m%d" % at) + b"\x15" + struct.pack("<f", number))
            for at, number in enumerate(numbers)
        )
        return b"\x09" + struct.pack("<d", 1e9) + field(2, 3) + field(5, summary)

    decoder = ScalarDecoder("")
    decoder.decode(event(0.5, 0.25, 8))
    assert decoder.decode(event(1, 1, 2)) == Point(ts=10**18, step=3, values={"m0": 1.0, "m1": 1.0, "m2": 2.0})


@given(st.binary(max_size=60), st.integers(0, 60))
def test_other_bytes_are_parsed(noise: bytes, at: int) -> None:
    """Bytes within an event that change its lengths are read, or refused, as the decoder that parses does it."""
    data = scalar("loss", 0.5, 3)
    decoder = ScalarDecoder("")
    decoder.decode(data)
    data = data[:at] + noise + data[at:]
    try:
        whole = EventDecoder().decode(data)
    except DamagedEventError:
        with pytest.raises(DamagedEventError):
            decoder.decode(data)
        return
    found = decoder.decode(data)
    assert repr(found) == repr(whole if isinstance(found, Event) else point_of(whole))


def test_other_events_are_parsed() -> None:
    """Texts, images and numbers beside them are no points."""
    decoder = ScalarDecoder("")
    for _ in range(2):
        assert isinstance(decoder.decode(text("note", "hi", 1)), Event)
        assert isinstance(decoder.decode(image("picture")), Event)
        assert isinstance(decoder.decode(scalar("loss", 0.5, 1) + tensor("picture", b"", "images")), Event)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_record_cut_anywhere_is_named(tmp_path: Path, cut: int) -> None:
    """The records before it are read."""
    path = event_file(tmp_path, scalar("loss", 0.5, 1), scalar("loss", 0.25, 2))
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    found = records(path, len(data) - cut)
    assert next(found) == scalar("loss", 0.5, 1)
    with pytest.raises(DamagedEventError, match=f"at byte {len(data) // 2} is cut short"):
        next(found)


def test_long_files_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records across the borders of reads are whole, and what is written after the start is not read."""
    monkeypatch.setattr("trainwire.cli.transfer.readers.event_records._READ_BYTES", 7)
    events = [scalar("loss", 0.5, step) for step in range(50)]
    path = event_file(tmp_path, *events)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    assert list(records(path, size)) == events


def names_of(folder: Path) -> dict[str, set[str]]:
    """Return run -> names of its metrics."""
    found = {}
    for run in tensorboard_runs(folder, None, ""):
        assert not isinstance(run, LeftOut)
        bodies = [message.body for message in messages_of(run, Tally())]
        points = [point for body in bodies for point in getattr(body, "points", ())]
        found[run.name] = {name for point in points for name in point.values}
    return found


def test_a_run_is_the_highest_folder_with_event_files(tmp_path: Path) -> None:
    """Folders below it, and parts of its curves, are prefixes of names; others are runs of their own."""
    for place in ("a", "a/loss_train", "b/train", "b/val", "c/1", "c/2", "train"):
        event_file(tmp_path / place, scalar("loss", 0.5, 1))
    (tmp_path / "empty").mkdir()
    assert names_of(tmp_path / "a") == {"a": {"loss", "loss_train/loss"}}
    assert names_of(tmp_path / "b") == {"b": {"train/loss", "val/loss"}}
    assert names_of(tmp_path / "c") == {"1": {"loss"}, "2": {"loss"}}
    (tmp_path / "train" / "events.out.tfevents.1700000000.host").unlink()
    assert set(names_of(tmp_path)) == {"a", "b", "c/1", "c/2"}


def test_the_folder_of_add_hparams_is_no_prefix(tmp_path: Path) -> None:
    """A folder that is named by a time is left out of the names, as for metrics that a hook reports."""
    for place in ("a", "a/1700000000.1234567", "a/val/1700000000.5"):
        event_file(tmp_path / place, scalar("hparam/loss", 0.5, 1))
    assert names_of(tmp_path) == {"a": {"hparam/loss", "val/hparam/loss"}}


def test_empty_files_are_left_out(tmp_path: Path) -> None:
    """A run whose event files have no byte is named with the reason; a pipe is no event file."""
    event_file(tmp_path / "a")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "events.out.tfevents.0.pipe")
    assert list(tensorboard_runs(tmp_path, None, "")) == [LeftOut("a", "its event files are empty")]


def test_an_image_is_counted(tmp_path: Path) -> None:
    """It is no number, and named."""
    event_file(tmp_path, scalar("loss", 0.5, 1), image("picture"))
    (run,) = tensorboard_runs(tmp_path, "named", "")
    assert not isinstance(run, LeftOut)
    tally = Tally()
    list(messages_of(run, tally))
    assert (run.name, tally.skipped["points"]) == ("named", {"image: not a number": 1})
