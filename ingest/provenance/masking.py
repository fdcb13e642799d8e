"""Replaces secrets by `***` in command arguments, environment variables, URLs and diffs.

A secret is recognised by the name before it or by its format. The module also runs in the collector's process,
under other versions of Python, and imports nothing outside the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

MASK: Final = "***"

_WORDS: Final = (
    r"password|passwd|passphrase|pwd|pass|secret|secrets|credential|credentials|auth|authorization|bearer|cookie|"
    r"sig|"
    r"apikey|token"
)
_KEYS: Final = r"(?:api|access|secret|private|auth|account|service|encryption|signing|license|ssh|wandb|aws|hf)"
_HARMLESS: Final = re.compile(
    # Tokens of a vocabulary, keys of a sort or a record: their names are everywhere in programs.
    r"(?:^|[-_.])(?:(?:pad|eos|bos|unk|cls|sep|mask|image|special|stop|start|end|prompt|max|min|num|n|per)[-_]?token"
    r"|(?:sort|group|image|label|text|data|input|target|output|primary|foreign|public|partition|dict|cache)[-_]?key)$",
    re.IGNORECASE,
)
_SECRET: Final = re.compile(
    rf"(?:^|[-_.])(?:{_WORDS}|{_KEYS}[-_]?key|key)(?:$|[-_.](?:id|file|value|string|v\d+)$)"
)
_HUMPS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_VALUE: Final = r"""(?P<value>"[^"\n]*"|'[^'\n]*'|[^\s,;&"']+)"""
_ASSIGNED: Final = re.compile(
    r"""(?<![\w.-])(?P<name>[\w.-]{2,100})(?P<sep>["']?[ \t]*(?:=(?!=)|:(?!/))[ \t]*)""" + _VALUE
)
_OPTION: Final = re.compile(r"(?<![\w.-])(?P<name>--?[A-Za-z][\w.-]{1,100})(?P<sep>[ \t]+)" + _VALUE)
# Repetitions are bounded: a diff may have a line of 100,000 letters.
_URL: Final = re.compile(
    r"\b(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}://)(?P<user>[^\s/@:]{0,500})(?P<password>:[^\s/]{0,500})?@"
)
_BEARER: Final = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_FORMS: Final = re.compile(
    r"\b(?:sk-|gh[oprsu]_|github_pat_|glpat-|hf_|xox[abprs]-|AKIA|ASIA|eyJ)[\w.-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
"""Secrets that are recognised by their format: tokens of well-known services, and private keys in PEM."""


def is_secret(name: str) -> bool:
    """Return whether a variable, option or field of this name is likely to contain a secret."""
    plain = _HUMPS.sub("_", name.strip().lstrip("-+"))
    return not _HARMLESS.search(plain) and _SECRET.search(plain.lower()) is not None


def masked_text(text: str) -> str:
    """Return `text` with secrets masked: passwords in URLs, values after names of secrets, tokens by their format.

    An example of such a value is X in `api_key=X`. After a name with a leading dash the value may also follow a
    space, as in `--password X`.
    """
    text = _URL.sub(_masked_url, _FORMS.sub(MASK, text))
    text = _ASSIGNED.sub(_masked_value, _BEARER.sub(rf"\1 {MASK}", text))
    return _OPTION.sub(_masked_value, text)


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """Return command arguments with secrets masked, such as X in `--api-key X`, `--password=X`, `API_KEY=X`."""
    masked: list[str] = []
    is_next_secret = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if is_next_secret and not argument.startswith("--"):
            masked.append(MASK)
            is_next_secret = False
            continue
        is_option = argument.startswith("-")
        is_next_secret = is_option and not equals and is_secret(argument)
        is_assignment = bool(equals) and not any(char.isspace() for char in name) and is_secret(name)
        masked.append(f"{name}={MASK}" if is_assignment else masked_text(argument))
    return masked


def masked_variables(variables: dict[str, str]) -> dict[str, str]:
    """Return environment variables with secrets masked, recognised by the name or by the format of the value."""
    return {name: MASK if is_secret(name) else masked_text(value) for name, value in variables.items()}


def masked_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with secrets masked, also in nested mappings and lists."""
    return {name: MASK if is_secret(str(name)) else _masked_field(value) for name, value in fields.items()}


def _masked_field(value: Any) -> Any:
    if isinstance(value, Mapping):
        return masked_fields(value)
    if isinstance(value, list | tuple):
        return [_masked_field(item) for item in value]
    return masked_text(value) if isinstance(value, str) else value


def _masked_url(found: re.Match[str]) -> str:
    if found["password"] is None and found["scheme"] == "ssh://":  # git@host names no secret
        return found[0]
    user = found["user"] if found["password"] is not None else MASK  # https://TOKEN@host
    return f"{found['scheme']}{user}{':' + MASK if found['password'] is not None else ''}@"


def _masked_value(found: re.Match[str]) -> str:
    value, quote = found["value"], found["value"][0] if found["value"][0] in "\"'" else ""
    # Code names things too: `token = tokenizer(text)` is no secret, `token = "abc"` is.
    is_code = not quote and any(char in value for char in "([{")
    if value == MASK or is_code or not is_secret(found["name"]):
        inner = _ASSIGNED.sub(_masked_value, value)  # an address in it may have a query: host:port/path?token=X
        return f"{found['name']}{found['sep']}{inner}"
    return f"{found['name']}{found['sep']}{quote}{MASK}{quote}"
