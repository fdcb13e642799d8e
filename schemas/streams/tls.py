"""Explains failed TLS handshakes by the errors of client libraries."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from trainwire.schemas.streams.urls import DEFAULT_PORT, cluster_nodes, is_cluster

REDIS_CA: Final = "in REDIS_URL, ?ssl_ca_certs=/path/to/ca.pem"
CLUSTER_CA: Final = "in STREAMS_URL, ?ssl_ca_certs=/path/to/ca.pem"
S3_CA: Final = "with AWS_CA_BUNDLE"


def tls_trouble(exc: BaseException, where: str) -> str | None:
    """Return the reason why TLS failed and the remedy; None for an error with another cause.

    `where` describes the setting of the CA file for this server.
    """
    for each in _chain(exc):
        if isinstance(each, ssl.SSLCertVerificationError):
            remedy = _REMEDIES.get(each.verify_code, f"name the file of its CA {where}")
            return f"its certificate is not trusted ({each.verify_message.rstrip('.')}): {remedy}"
        if isinstance(each, ssl.SSLError):
            if each.reason in _NO_TLS:
                return "it does not use TLS: correct its address"
            if each.reason:  # urllib3 raises SSLError without a reason for other errors
                return f"TLS fails ({each.reason})"
        if isinstance(each, TimeoutError) and "handshake" in str(each):
            return "it does not answer to TLS: correct its address if it does not use TLS"
        if isinstance(each, FileNotFoundError):
            return f"the file of its CA is not there: name it {where}"
    return None


def redis_trouble(exc: BaseException, url: str = "") -> str:
    """Return the message of redis-py, with its address, and a remedy if TLS is the cause.

    With `url`, for a server that has not answered yet, a closed connection leads to a probe for TLS of one second.
    """
    message = str(exc) or type(exc).__name__
    trouble = tls_trouble(exc, CLUSTER_CA if is_cluster(url) else REDIS_CA) or _missing_tls(exc, url)
    if trouble is not None:
        return f"{message.partition('. ')[0].rstrip('.')}: {trouble}"
    return message


def uses_tls(host: str, port: int) -> bool:
    """Return whether a server answers to a TLS handshake, with any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent to it
    try:
        with (
            socket.create_connection((host, port), timeout=_PROBE_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError:
        return False


def _missing_tls(exc: BaseException, url: str) -> str | None:
    scheme = url.partition("://")[0]
    if scheme not in _WITH_TLS or not any(sign in str(each) for each in _chain(exc) for sign in _HANGS_UP):
        return None
    if is_cluster(url):
        servers = cluster_nodes(url)
    else:
        parts = urlsplit(url)
        servers = [(parts.hostname or "localhost", parts.port or DEFAULT_PORT)]
    if not any(uses_tls(*server) for server in servers):
        return None
    return f"it uses TLS: its address begins with {_WITH_TLS[scheme]}://, not with {scheme}://"


def s3_trouble(exc: BaseException) -> str:
    """Return the message of botocore, or if TLS is the cause the server, the reason and the remedy."""
    trouble = tls_trouble(exc, S3_CA)
    if trouble is None:
        return str(exc)
    asked = getattr(exc, "kwargs", {}).get("endpoint_url", "")
    return f"{urlsplit(str(asked)).netloc} cannot be used: {trouble}"


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, also those in the attributes of urllib3 and requests."""
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
"""OpenSSL's reasons for an answer that is not TLS."""
_WITH_TLS: Final = {"redis": "rediss", "redis+cluster": "rediss+cluster"}
_HANGS_UP: Final = ("closed by server", "reset by peer", "Broken pipe", "rotocol error")
"""Parts of redis-py's errors when a TLS server rejects plain commands; the last one is for a TLS alert."""
_PROBE_S: Final = 1.0
_REMEDIES: Final = {
    9: "it is not valid yet, are the clocks right?",
    10: "renew it",
    62: "use the name that it was made for",
    64: "use the address that it was made for",
}
"""OpenSSL's X509_V_ERR_* codes for which another CA is no help (x509_vfy.h)."""
