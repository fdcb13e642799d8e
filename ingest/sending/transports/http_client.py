"""A small HTTP client based on `http.client`: one persistent connection, proxies, TLS, and safe redirects."""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401 - Python imports it with the first host name: see trainwire.ingest.process.forks
import http.client
import ssl
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from trainwire.ingest.servers.outage import Unavailable
from trainwire.schemas.gateway_urls import CA_PARAMETER, base_of, ca_file_of, host_and_port
from trainwire.schemas.streams.tls import tls_trouble

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 20
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 307, 308})
_CA: Final = f"with SSL_CERT_FILE, or in TRAINWIRE_URL, ?{CA_PARAMETER}=/path/to/ca.pem"
_CLOSED: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
_ERRORS: Final = (OSError, http.client.HTTPException, ValueError)


class Response(NamedTuple):
    """An HTTP response; `body` has at most `MAX_ANSWER_BYTES` bytes, a longer one is cut."""

    status: int
    media_type: str
    body: bytes


class HttpClient:
    """Sends POST requests to paths below one address; every failure without a response raises `Unavailable`.

    A request may arrive twice: it is repeated if the server has closed the idle connection. At most
    `MAX_REDIRECTS` redirects are followed, and only if the new address has the same host, ends with the same path
    and does not leave HTTPS, because the token is sent with each request.
    """

    def __init__(self, url: str) -> None:
        self._base = base_of(url)
        self._ca_file = ca_file_of(url)
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._prefix = ""
        self._proxy_headers: dict[str, str] = {}

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send `body` to `path` below the address, and return the response, whatever its status.

        Raises `Unavailable` if there is no response, or a redirect that may not be followed.
        """
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response, location = self._send(path, body, headers)
            except _ERRORS as exc:
                self.close()
                raise Unavailable(self._trouble(exc)) from exc
            if response.status not in _REDIRECTS:
                return response
            self._base = _redirected(self._base, path, location)
            self.close()
        raise Unavailable(f"it redirects in a circle, last to {self._base}: correct TRAINWIRE_URL")

    def close(self) -> None:
        """Close the connection; the next request opens a new one, and reads the proxy variables again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.close()

    def _send(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[Response, str]:
        is_reused = self._connection is not None
        try:
            return self._round_trip(path, body, headers)
        except _CLOSED:
            if not is_reused:
                raise
        self.close()  # closed while it was idle
        return self._round_trip(path, body, headers)

    def _round_trip(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[Response, str]:
        connection = self._connection or self._connect()
        target = f"{self._prefix}{urlsplit(self._base).path}{path}"
        with suppress(BrokenPipeError, ConnectionResetError):
            # A server may answer before it has read the body, and close: with 413, for instance.
            connection.request("POST", target, body, {**headers, **self._proxy_headers})
        found = connection.getresponse()
        content = found.read(MAX_ANSWER_BYTES)
        if found.will_close or not found.isclosed():
            self.close()
        media_type = (found.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        return Response(found.status, media_type, content), found.getheader("Location") or ""

    def _connect(self) -> http.client.HTTPConnection:
        """Open a connection to the server, or to its proxy if the environment names one."""
        parts = urlsplit(self._base)
        host, port = parts.hostname or "", parts.port
        proxy = _proxy_of(parts)
        is_tls = parts.scheme == "https"
        at = (host, port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        connection: http.client.HTTPConnection
        if is_tls:
            connection = http.client.HTTPSConnection(*at, timeout=CONNECT_TIMEOUT_S, context=self._context())
        else:
            connection = http.client.HTTPConnection(*at, timeout=CONNECT_TIMEOUT_S)
        self._prefix, self._proxy_headers = "", {}
        if proxy is not None:
            credentials = _credentials(proxy)
            if is_tls:
                connection.set_tunnel(host, port or 443, credentials)
            else:
                self._prefix = f"http://{host_and_port(parts)}"
                self._proxy_headers = credentials
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(READ_TIMEOUT_S)
        self._connection = connection
        return connection

    def _context(self) -> ssl.SSLContext:
        """Return the TLS context: it trusts the CA file in the address, or SSL_CERT_FILE, or the system's CAs."""
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._ca_file)
        return self._tls

    def _trouble(self, exc: Exception) -> str:
        """Return the text of a connection error, with the remedy if TLS is the cause."""
        message = str(exc) or type(exc).__name__
        trouble = tls_trouble(exc, _CA) if self._base.startswith("https") else None
        if trouble is not None:
            return trouble
        if isinstance(exc, http.client.BadStatusLine) and not isinstance(exc, _CLOSED):
            return "it does not answer with HTTP: is it the address of the gateway, and does it begin with https?"
        return message


def _proxy_of(parts: SplitResult) -> SplitResult | None:
    """Return the proxy for a server by HTTPS_PROXY, HTTP_PROXY and NO_PROXY; None if there is none."""
    found = urllib.request.getproxies().get(parts.scheme)
    if not found or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    if proxy.scheme != "http" or not proxy.hostname:
        variable = f"{parts.scheme.upper()}_PROXY"
        shown = f"{proxy.scheme}://{proxy.hostname or ''}"
        raise Unavailable(
            f"{variable}={shown} is not a proxy that can be used: write http://host:port, or set NO_PROXY"
        )
    return proxy


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _redirected(base: str, path: str, location: str) -> str:
    """Return the new base address after a redirect; raise `Unavailable` if the redirect may not be followed."""
    target = urljoin(f"{base}{path}", location)
    old, new = urlsplit(base), urlsplit(target)
    leaves_tls = old.scheme == "https" and new.scheme != "https"
    if not location or not target.endswith(path) or new.query:
        raise Unavailable(
            f"it redirects to {_shown(target)}, which is not the gateway (a login page of a proxy?): let the "
            "proxy pass /jobs/ on to the gateway, which checks the token itself"
        )
    if new.hostname != old.hostname or new.scheme not in ("http", "https") or leaves_tls:
        raise Unavailable(
            f"it redirects to {_shown(target.removesuffix(path))}, where the token is not sent without your "
            "consent: write this address into TRAINWIRE_URL if it is right"
        )
    return base_of(target.removesuffix(path))


def _shown(url: str) -> str:
    """Return an address for display, without parameters and control characters."""
    return "".join(char for char in url.partition("?")[0][:200] if char.isprintable())
