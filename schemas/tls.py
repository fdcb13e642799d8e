"""What a failed TLS handshake was about, found in whatever error a client library made of it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

REDIS_CA: Final = "in REDIS_URL, ?ssl_ca_certs=/path/to/ca.pem"
S3_CA: Final = "with AWS_CA_BUNDLE"


def tls_trouble(exc: BaseException, where: str) -> str | None:
    """Return in words why TLS failed below an error and what to do; None where something else failed.

    `where` says how the file of a CA is named for this server.
    """
    for each in _all_below(exc):
        if isinstance(each, ssl.SSLCertVerificationError):
            remedy = _REMEDIES.get(each.verify_code, f"name the file of its CA {where}")
            return f"its certificate is not trusted ({each.verify_message.rstrip('.')}): {remedy}"
        if isinstance(each, ssl.SSLError):
            if each.reason in _NO_TLS:
                return "it does not speak TLS: correct its address"
            if each.reason:  # urllib3 makes one without of what is none
                return f"TLS fails ({each.reason})"
        if isinstance(each, FileNotFoundError):
            return f"the file of its CA is not there: name it {where}"
    return None


def redis_trouble(exc: BaseException) -> str:
    """Return what redis-py says, its address included, with what to set where TLS is the matter."""
    said = str(exc) or type(exc).__name__
    trouble = None if "unix socket" in said else tls_trouble(exc, REDIS_CA)
    if trouble is not None:
        return f"{said.partition('. ')[0]}: {trouble}"
    return said


def s3_trouble(exc: BaseException) -> str:
    """Return what botocore says, with the server and what to set where TLS is the matter."""
    trouble = tls_trouble(exc, S3_CA)
    if trouble is None:
        return str(exc)
    asked = getattr(exc, "kwargs", {}).get("endpoint_url", "")
    return f"{urlsplit(str(asked)).netloc} cannot be used: {trouble}"


def _all_below(exc: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it: causes, and what urllib3 and requests keep elsewhere."""
    waiting, seen = [exc], set()
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        kept = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        waiting += [one for one in kept if isinstance(one, BaseException)]


_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"})
"""What OpenSSL calls an answer that is none of TLS."""
_REMEDIES: Final = {
    9: "it is not valid yet, are the clocks right?",
    10: "renew it",
    62: "use the name that it was made for",
    64: "use the address that it was made for",
}
"""OpenSSL's X509_V_ERR_* codes for which another CA is no help (x509_vfy.h)."""
