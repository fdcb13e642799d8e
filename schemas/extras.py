"""The sentence about a missing package, with the optional extra of trainwire that installs it."""

from __future__ import annotations


def install_hint(what: str, extra: str) -> str:
    """Return the sentence that a package is not installed, with the `pip install` command for `extra`.

    `what` is the name of the package, or of a module in it. `extra` is the optional extra of trainwire that
    installs the package.
    """
    return f"{what.partition('.')[0]} is not installed: {install_command(extra)}"


def install_command(extra: str) -> str:
    """Return the `pip install` command for an optional extra of trainwire."""
    return f"pip install 'trainwire[{extra}]'"
