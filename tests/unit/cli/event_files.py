"""Writes event files of TensorBoard with the checksums that its own writer makes."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.unit.ingest.test_event_files import field, scalar, tensor
from trainwire.cli.transfer.readers.checksums import masked_crc

__all__ = ["event_file", "hparams", "image", "scalar", "text"]


def event_file(folder: Path, *events: bytes) -> Path:
    """Write a file of events into a folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.out.tfevents.1700000000.host"
    path.write_bytes(b"".join(map(record, events)))
    return path


def record(event: bytes) -> bytes:
    """Return an event as it stands in a file."""
    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_crc(length)) + event + struct.pack("<I", masked_crc(event))


def text(tag: str, content: str, step: int) -> bytes:
    """Return an event with a text."""
    return b"\x09" + struct.pack("<d", 1.7e9) + tensor(tag, field(8, content.encode()), "text", step)


def image(tag: str) -> bytes:
    """Return an event with an image."""
    return tensor(tag, field(8, b"png"), "images")


def hparams(**values: float) -> bytes:
    """Return an event with hyperparameters."""
    pairs = b"".join(
        field(1, field(1, name.encode()) + field(2, b"\x11" + struct.pack("<d", value)))
        for name, value in values.items()
    )
    plugin = field(1, field(1, b"hparams") + field(2, field(3, pairs)))
    summary = field(1, field(1, b"_hparams_/session_start_info") + field(9, plugin))
    return b"\x09" + struct.pack("<d", 1.7e9) + field(5, summary)
