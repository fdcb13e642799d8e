"""The trainer's side of trainwire: report a training run without ever slowing it down or stopping it."""

from ingest.contract import ensure_own_schemas

ensure_own_schemas()  # before anything of ours imports `schemas`, so that the error is one clear sentence

from ingest.receipt import Receipt  # noqa: E402
from ingest.run import Run  # noqa: E402
from ingest.settings import TrainerSettings  # noqa: E402
from ingest.strict import NotStored, RankTaken, RedisAway, StrictError  # noqa: E402

__all__ = ["NotStored", "RankTaken", "Receipt", "RedisAway", "Run", "StrictError", "TrainerSettings"]
