"""What a failed TLS handshake was about, found in whatever error a client library made of it."""

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
        if isinstance(each, TimeoutError) and "handshake" in str(each):
            return "it does not answer to TLS: correct its address, if it does not speak it"
        if isinstance(each, FileNotFoundError):
            return f"the file of its CA is not there: name it {where}"
    return None


def redis_trouble(exc: BaseException, url: str = "") -> str:
    """Return what redis-py says, its address included, with what to set where TLS is the matter.

    `url` is for a server that has not answered yet: where it hangs up it is asked for TLS, for a second.
    """
    said = str(exc) or type(exc).__name__
    trouble = tls_trouble(exc, CLUSTER_CA if is_cluster(url) else REDIS_CA) or _wish_for_tls(exc, url)
    if trouble is not None:
        return f"{said.partition('. ')[0].rstrip('.')}: {trouble}"
    return said


def speaks_tls(host: str, port: int) -> bool:
    """Tell whether a server answers to TLS, whatever its certificate."""
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


def _wish_for_tls(exc: BaseException, url: str) -> str | None:
    scheme = url.partition("://")[0]
    if scheme not in _WITH_TLS or not any(sign in str(each) for each in _all_below(exc) for sign in _HANGS_UP):
        return None
    if is_cluster(url):
        servers = cluster_nodes(url)
    else:
        parts = urlsplit(url)
        servers = [(parts.hostname or "localhost", parts.port or DEFAULT_PORT)]
    if not any(speaks_tls(*server) for server in servers):
        return None
    return f"it speaks TLS: its address begins with {_WITH_TLS[scheme]}://, not with {scheme}://"


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
_WITH_TLS: Final = {"redis": "rediss", "redis+cluster": "rediss+cluster"}
_HANGS_UP: Final = ("closed by server", "reset by peer", "Broken pipe", "rotocol error")
"""What redis-py makes of a server that takes our first words for a broken handshake; the last is of an alert."""
_PROBE_S: Final = 1.0
_REMEDIES: Final = {
    9: "it is not valid yet, are the clocks right?",
    10: "renew it",
    62: "use the name that it was made for",
    64: "use the address that it was made for",
}
"""OpenSSL's X509_V_ERR_* codes for which another CA is no help (x509_vfy.h)."""
