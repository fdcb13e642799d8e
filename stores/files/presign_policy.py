"""Where checkpoint files are looked at and lent from: whoever can send a message can name any address."""

from __future__ import annotations

from collections.abc import Sequence

from trainwire.schemas.checkpoint_keys import SCHEME, S3Uri
from trainwire.stores.settings import StoreSettings


class NotLent(Exception):  # noqa: N818 - said as it stands
    """An object lies where nothing is lent from; the text names the bucket and what to set."""


def check_lendable(uri: S3Uri, settings: StoreSettings) -> None:
    """Raise `NotLent` for an address outside of the checkpoints' own folder and of `CHECKPOINT_LEND_ALSO`."""
    places = lending_places(settings)
    if not lies_in(uri, places):
        raise NotLent(
            f"{uri} was named by a trainer, and is lent from {shown_places(places)}. If all who may see the job "
            f"may have bucket {uri.bucket!r}, name it in CHECKPOINT_LEND_ALSO={SCHEME}{uri.bucket}/"
        )


def lies_in(uri: S3Uri, places: Sequence[str]) -> bool:
    """Tell whether an object, or a folder, lies in one of these places.

    A key with the segments `.` or `..` lies nowhere: clients and proxies on the way make another one of it.
    """
    return not {".", ".."} & set(uri.key.split("/")) and any(str(uri).startswith(place) for place in places)


def shown_places(places: Sequence[str]) -> str:
    """Return the places in words."""
    return ", ".join(places) or "nowhere: TRAINWIRE_CHECKPOINT_BUCKET is not set"


def lending_places(settings: StoreSettings) -> list[str]:
    """Return what the address of an object that is looked at or lent begins with, each with a slash at its end."""
    own, also = settings.trainwire_checkpoint_bucket, settings.checkpoint_lend_also
    places = [place.strip() for place in also.split(",") if place.strip()]
    if own:
        places.insert(0, f"{SCHEME}{own}/{settings.trainwire_checkpoint_prefix.strip('/')}")
    return [place.rstrip("/") + "/" for place in places]
