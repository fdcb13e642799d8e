"""Which checkpoint files are lent: whoever can send a message can name any address, in any bucket of ours."""

from __future__ import annotations

from schemas.checkpoint_keys import SCHEME, S3Uri
from stores.settings import StoreSettings


class NotLent(Exception):  # noqa: N818 - said as it stands
    """An object lies where nothing is lent from; the text names the bucket and what to set."""


def check_lendable(uri: S3Uri, settings: StoreSettings) -> None:
    """Raise `NotLent` for an address outside of the checkpoints' own folder and of `CHECKPOINT_LEND_ALSO`.

    A key with the segments `.` or `..` is never lent: clients and proxies on the way make another one of it.
    """
    is_plain = not {".", ".."} & set(uri.key.split("/"))
    if is_plain and any(str(uri).startswith(place) for place in lending_places(settings)):
        return
    places = ", ".join(lending_places(settings)) or "nowhere: TRAINWIRE_CHECKPOINT_BUCKET is not set"
    raise NotLent(
        f"{uri} was named by a trainer, and is lent from {places}. If all who may see the job may have bucket "
        f"{uri.bucket!r}, name it in CHECKPOINT_LEND_ALSO={SCHEME}{uri.bucket}/"
    )


def lending_places(settings: StoreSettings) -> list[str]:
    """Return what the address of an object that is lent begins with, each with a slash at its end."""
    own, also = settings.trainwire_checkpoint_bucket, settings.checkpoint_lend_also
    places = [place.strip() for place in also.split(",") if place.strip()]
    if own:
        places.insert(0, f"{SCHEME}{own}/{settings.trainwire_checkpoint_prefix.strip('/')}")
    return [place.rstrip("/") + "/" for place in places]
