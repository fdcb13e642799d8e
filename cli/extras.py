"""Which extra of the distribution a command needs."""

from __future__ import annotations

from typing import Final

_EXTRAS: Final = {"run": "cli", "spool": "cli", "up": "embedded", "demo": "embedded"}
_DEFAULT: Final = "worker"


def install_hint(package: str, command: str | None) -> str:
    """Return the sentence for a package that a command, or the whole command line, does not find."""
    extra = "cli" if command is None else _EXTRAS.get(command, _DEFAULT)
    instead = ", or use `python -m trainwire.ingest`" if command == "run" else ""
    return f'{package} is not installed: pip install "trainwire[{extra}]"{instead}'
