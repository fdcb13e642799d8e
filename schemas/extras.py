"""The sentence about a missing package, with the optional extra of trainwire that installs it."""

from __future__ import annotations


def install_hint(what: str, extra: str) -> str:
    """Return a sentence with the `pip install` command for `what`, which the optional `extra` of trainwire has.

    `what` is a package, or a module, of which only the package is named.
    """
    return f"{what.partition('.')[0]} is not installed: {install_command(extra)}"


def install_command(extra: str) -> str:
    """Return the `pip install` command for an optional extra of trainwire."""
    return f"pip install 'trainwire[{extra}]'"
