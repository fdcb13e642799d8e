"""Names the optional extra of trainwire that installs a missing package, for error messages."""

from __future__ import annotations

from typing import Final

_EXTRAS: Final = {"run": "cli", "spool": "cli", "up": "embedded", "demo": "embedded", "mcp": "mcp"}
_DEFAULT: Final = "worker"


def install_hint(package: str, command: str | None) -> str:
    """Return a sentence with the `pip install` command for a missing package or module.

    The extra is that of `command`, the command that needs the package; None means that all commands need it.
    """
    extra = "cli" if command is None else _EXTRAS.get(command, _DEFAULT)
    instead = ", or use `python -m trainwire.ingest`" if command == "run" else ""
    package = package.partition(".")[0]
    return f'{package} is not installed: pip install "trainwire[{extra}]"{instead}'
