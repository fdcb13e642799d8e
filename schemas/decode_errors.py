"""The exceptions with which msgspec rejects bytes."""

from __future__ import annotations

from typing import Final

import msgspec

DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec's decoders: for wrong syntax or types, for text that is not UTF-8, and for deep nesting.

Nesting can be too deep anywhere, also in fields that the decoded type does not have.
"""
