"""Sends the events that TensorBoard's and tensorboardX's writers write to the launcher, which decodes them."""

from __future__ import annotations

import functools
import os
from base64 import b64encode
from types import ModuleType
from typing import Any

from . import channel

MAX_EVENT_BYTES = 32 * 1024
"""Maximum size of an event that is sent. Of a larger one (an image or a histogram) only the kind is sent."""


def patch(module: ModuleType) -> None:
    """Wrap `EventFileWriter.add_event`, through which every event is written."""
    original = module.EventFileWriter.add_event

    @functools.wraps(original)
    def add_event(writer: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(writer, event, *args, **kwargs)
        try:
            _take(os.path.abspath(str(writer.get_logdir())), event)
        except Exception as exc:  # noqa: BLE001 - foreign objects
            channel.send({"type": "failure", "by": "tensorboard", "text": f"{type(exc).__name__}: {exc}"})
        return result

    module.EventFileWriter.add_event = add_event


def _take(folder: str, event: Any) -> None:
    if not event.HasField("summary"):
        channel.send({"type": "event", "folder": folder, "data": ""})  # it announces its folder
        return
    if event.ByteSize() <= MAX_EVENT_BYTES:
        data = b64encode(event.SerializeToString()).decode()
        channel.send({"type": "event", "folder": folder, "data": data})
        return
    for value in event.summary.value:
        kind = value.metadata.plugin_data.plugin_name or value.WhichOneof("value")
        channel.send({"type": "not taken", "by": "tensorboard", "kind": str(kind)})
