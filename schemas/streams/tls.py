"""Error texts for failed TLS handshakes: finds the cause in the chain of exceptions, and names the remedy."""

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
    """Return the reason and the remedy if a failed TLS handshake or a missing CA file caused `exc`, else None.

    `where` names the setting for the CA file of this server, such as "with AWS_CA_BUNDLE".
    """
    for each in _error_chain(exc):
        if isinstance(each, ssl.SSLCertVerificationError):
            remedy = _REMEDIES.get(each.verify_code, f"name the file of its CA {where}")
            return f"its certificate is not trusted ({each.verify_message.rstrip('.')}): {remedy}"
        if isinstance(each, ssl.SSLError):
            if each.reason in _NO_TLS:
                return "it does not use TLS: correct its address"
            if each.reason:  # urllib3 wraps other errors in one without a reason
                return f"TLS fails ({each.reason})"
        if isinstance(each, TimeoutError) and "handshake" in str(each):
            return "it does not answer the TLS handshake: correct its address, if it does not use TLS"
        if isinstance(each, FileNotFoundError):
            return f"the file of its CA is not there: name it {where}"
    return None


def redis_trouble(exc: BaseException, url: str = "") -> str:
    """Return the text of a redis-py error; if TLS is the cause, its first sentence, the reason and the remedy.

    Pass `url` on the first connection to a server: if the server closed the connection, this function connects
    once more to test whether it expects TLS, with a timeout of a second (for a cluster, to each of its servers).
    """
    message = str(exc) or type(exc).__name__
    trouble = tls_trouble(exc, CLUSTER_CA if is_cluster(url) else REDIS_CA) or _missing_tls(exc, url)
    if trouble is not None:
        return f"{message.partition('. ')[0].rstrip('.')}: {trouble}"
    return message


def accepts_tls(host: str, port: int) -> bool:
    """Return whether the server completes a TLS handshake; its certificate is not verified.

    Returns False for a server that cannot be reached or does not answer within a second.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no data is sent
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
    if scheme not in _WITH_TLS or not any(
        sign in str(each) for each in _error_chain(exc) for sign in _PLAIN_TEXT_REFUSED
    ):
        return None
    if is_cluster(url):
        servers = cluster_nodes(url)
    else:
        parts = urlsplit(url)
        servers = [(parts.hostname or "localhost", parts.port or DEFAULT_PORT)]
    if not any(accepts_tls(*server) for server in servers):
        return None
    return f"it expects TLS: its address begins with {_WITH_TLS[scheme]}://, not with {scheme}://"


def s3_trouble(exc: BaseException) -> str:
    """Return the text of a botocore error.

    If TLS is the cause, return the server's name and the remedy instead.
    """
    trouble = tls_trouble(exc, S3_CA)
    if trouble is None:
        return str(exc)
    endpoint = getattr(exc, "kwargs", {}).get("endpoint_url", "")
    return f"{urlsplit(str(endpoint)).netloc} cannot be used: {trouble}"


def _error_chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, including those that urllib3 and requests store in attributes."""
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
"""OpenSSL's reasons for a server that responds without TLS."""
_WITH_TLS: Final = {"redis": "rediss", "redis+cluster": "rediss+cluster"}
_PLAIN_TEXT_REFUSED: Final = ("closed by server", "reset by peer", "Broken pipe", "rotocol error")
"""Parts of redis-py's errors for a TLS server that received plain text.

The last one occurs when redis-py parses the TLS alert as a reply.
"""
_PROBE_S: Final = 1.0
_REMEDIES: Final = {
    9: "it is not valid yet, are the clocks right?",
    10: "renew it",
    62: "use the name that it was made for",
    64: "use the address that it was made for",
}
"""Remedies for those of OpenSSL's X509_V_ERR_* codes (x509_vfy.h) that another CA file would not solve."""
