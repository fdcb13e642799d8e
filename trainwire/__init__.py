"""Durable, live logging for machine-learning training: the public names of the SDK.

Each name is imported from its module at its first use, so that `import trainwire` is fast for the command line and
the workers, which do not use the SDK. `trainwire.integrations` and `trainwire.testing` are public too; all other
modules are private.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainwire.client.client import Client
    from trainwire.client.errors import ClientError, JobNotFound
    from trainwire.ingest.receipt import Receipt
    from trainwire.ingest.run import Run
    from trainwire.ingest.settings.trainer_settings import TrainerSettings
    from trainwire.ingest.strict import NotStored, RankTaken, RedisAway, StrictError
else:
    from importlib import import_module

    _MODULES = {
        "Client": "trainwire.client.client",
        "ClientError": "trainwire.client.errors",
        "JobNotFound": "trainwire.client.errors",
        "NotStored": "trainwire.ingest.strict",
        "RankTaken": "trainwire.ingest.strict",
        "Receipt": "trainwire.ingest.receipt",
        "RedisAway": "trainwire.ingest.strict",
        "Run": "trainwire.ingest.run",
        "StrictError": "trainwire.ingest.strict",
        "TrainerSettings": "trainwire.ingest.settings.trainer_settings",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *_MODULES})


__all__ = [
    "Client",
    "ClientError",
    "JobNotFound",
    "NotStored",
    "RankTaken",
    "Receipt",
    "RedisAway",
    "Run",
    "StrictError",
    "TrainerSettings",
]
