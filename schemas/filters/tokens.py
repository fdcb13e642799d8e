"""Tokenizer of the filter language: splits a text into operators, words and quoted texts, each with its column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from trainwire.schemas.filters.job_fields import Piece

MAX_CHARS: Final = 4000


class WrongFilter(ValueError):  # noqa: N818 - its text is sent to clients
    """A filter, a list of columns or a sort order cannot be parsed.

    `column` is the position of the first invalid character, counted from 1; the error text contains it.
    """

    def __init__(self, problem: str, column: int) -> None:
        head, mark, remedy = problem.partition("; ")
        super().__init__(f"{head} at column {column}{mark}{remedy}")
        self.column = column


@dataclass(frozen=True, slots=True)
class Token:
    """One token: an operator (without `pieces`), or a field, value or keyword with its `pieces`, quoted or not.

    `text` has no quotes, and the usual operator for a synonym: `=` for `==`, `!=` for `<>`.
    """

    column: int
    source: str
    """The token as typed, including quotes."""
    text: str
    pieces: tuple[Piece, ...] = ()

    @property
    def is_quoted(self) -> bool:
        """Whether the token, or a part of it, is in quotes."""
        return any(piece.is_quoted for piece in self.pieces)

    def is_word(self, *words: str) -> bool:
        """Return whether the token is one of `words`, without quotes; case is ignored."""
        return len(self.pieces) == 1 and not self.pieces[0].is_quoted and self.text.lower() in words


_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<operator><=|>=|!=|<>|==|!~|[=<>~(),])|(?P<atom>(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|"""
    r"""[^\s"'=<>!~(),])+)|(?P<quote>["'])|(?P<other>\S))""",
    re.DOTALL,
)
_PIECE: Final = re.compile(r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|[^"']+""", re.DOTALL)
_SAME: Final = {"==": "=", "<>": "!="}


def tokens_of(text: str) -> list[Token]:
    """Split `text` into tokens.

    Raises `WrongFilter` for an invalid character, an unclosed quote, or a text longer than MAX_CHARS.
    """
    if len(text) > MAX_CHARS:
        raise WrongFilter(f"{len(text):,} characters; use at most {MAX_CHARS:,}", MAX_CHARS + 1)
    for place, character in enumerate(text):
        if character == "\x00" or "\ud800" <= character <= "\udfff":
            raise WrongFilter(f"unexpected {character!r}; no stored text has it", place + 1)
    tokens, at = [], 0
    while found := _TOKEN.match(text, at):
        column = found.start(found.lastgroup or 0) + 1
        if found["quote"]:
            raise WrongFilter(f"no closing {found['quote']} for the text that begins", column)
        if found["other"]:
            raise WrongFilter(
                f"unexpected {found[0].strip()[:1]!r}; put texts with such characters in quotes", column
            )
        pieces = tuple(map(_piece, _PIECE.finditer(found["atom"]))) if found["atom"] else ()
        if pieces:
            tokens.append(Token(column, found["atom"], "".join(piece.text for piece in pieces), pieces))
        else:
            tokens.append(Token(column, found["operator"], _SAME.get(found["operator"], found["operator"])))
        at = found.end()
    return tokens


def _piece(found: re.Match[str]) -> Piece:
    if found["quoted"]:
        return Piece(re.sub(r"\\(.)", r"\1", found[0][1:-1], flags=re.DOTALL), is_quoted=True)
    return Piece(found[0])
