"""Names the optional extra of trainwire that a command needs, for error messages."""

from __future__ import annotations

from typing import Final

from trainwire.schemas.extras import install_hint

_EXTRAS: Final = {"run": "cli", "spool": "cli", "up": "embedded", "demo": "embedded", "mcp": "mcp"}
_DEFAULT: Final = "worker"


def command_hint(package: str, command: str | None) -> str:
    """Return a sentence with the `pip install` command for a missing package or module.

    The extra is that of `command`, the command that needs the package; None means that all commands need it.
    """
    instead = ", or use `python -m trainwire.ingest`" if command == "run" else ""
    return install_hint(package, "cli" if command is None else _EXTRAS.get(command, _DEFAULT)) + instead
