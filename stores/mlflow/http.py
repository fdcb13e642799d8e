"""A client for MLflow's REST API with its own exceptions.

Requests are sent with `requests`, unless the caller passes another `Send`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
import requests
from requests.auth import AuthBase, HTTPBasicAuth

from trainwire.schemas.backoff import retry_after_s
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.streams.tls import tls_trouble

API: Final = "/api/2.0/mlflow/"
TIMEOUT_S: Final = (3.0, 30.0)
"""Timeouts in seconds for the connection and for the response.

A batch of 1000 metrics takes a busy server on SQLite a second.
"""
MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
EXISTS: Final = "RESOURCE_ALREADY_EXISTS"
INVALID: Final = "INVALID_PARAMETER_VALUE"
_SHOWN_ANSWER_CHARS: Final = 500
_MEANING: Final = {
    401: " (check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)",
    403: " (check what the user may do, and the server's --allowed-hosts)",
    404: " (is MLFLOW_TRACKING_URI the address of MLflow itself?)",
    429: " (rate limit)",
}


class MlflowUnavailable(Exception):  # noqa: N818 - a state
    """MLflow did not respond, or responded with an error other than those of `MlflowRefused`; a retry may succeed.

    `retry_after_s` is the delay in its Retry-After header, if any; `failed_inside` is True for a 5xx status.
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, failed_inside: bool = False) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.failed_inside = failed_inside


class MlflowRefused(Exception):  # noqa: N818 - a state
    """MLflow rejects the request permanently; `code` is INVALID, MISSING or EXISTS; the text is its message."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Send(Protocol):
    """Sends one request, and returns the response whatever its status is.

    Raises `MlflowUnavailable` if there is no response.
    """

    def __call__(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, data: bytes | None = None
    ) -> requests.Response:
        """Send a request to `path` on the server, with query parameters `params` and the JSON body `data`."""
        ...


class MlflowApi:
    """Calls endpoints of MLflow's REST API; thread-safe if its `send` is.

    The methods raise `MlflowRefused` if MLflow rejects the request permanently, and `MlflowUnavailable` for a
    missing response, any other error, or a response that is not a JSON object.
    """

    def __init__(self, send: Send) -> None:
        self._send = send

    def get(self, endpoint: str, **params: Any) -> dict[str, Any]:
        """Send a GET request with query parameters and return the JSON object."""
        return _document(self._send("GET", API + endpoint, params=params))

    def post(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        """Send a POST request with a JSON object of `fields` and return the JSON object."""
        return _document(self._send("POST", API + endpoint, data=msgspec.json.encode(fields)))


def plain_send(url: str, environ: Mapping[str, str] = os.environ) -> Send:
    """Return a `Send` for the server at `url`, with the credentials in MLflow's environment variables.

    Supports basic authentication, bearer tokens and certificates. Workers use MLflow's own client instead, which
    supports more kinds. Proxies in the environment and ~/.netrc are ignored.
    """
    session = requests.Session()
    session.trust_env = False  # a proxy of the environment is for addresses outside
    session.auth = _auth(environ)
    session.cert = environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    is_insecure = environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}
    session.verify = not is_insecure and (environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)

    def send(
        method: str, path: str, *, params: Mapping[str, Any] | None = None, data: bytes | None = None
    ) -> requests.Response:
        headers = {"Content-Type": "application/json"}
        try:
            return session.request(
                method, url.rstrip("/") + path, params=params, data=data, headers=headers, timeout=TIMEOUT_S
            )
        except OSError as exc:  # all errors of requests, and those of a certificate file that is missing
            raise no_answer(url, exc) from exc

    return send


def no_answer(url: str, exc: BaseException) -> MlflowUnavailable:
    """Return the exception for a server that did not respond; its text contains the cause."""
    reason = getattr(exc.args[0] if exc.args else None, "reason", None)  # urllib3's, inside that of requests
    parts = urlsplit(url)
    host = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    why = str(exc) if type(exc) is OSError else type(reason or exc).__name__
    trouble = tls_trouble(exc, "with MLFLOW_TRACKING_SERVER_CERT_PATH")
    if trouble is not None:
        return MlflowUnavailable(f"MLflow at {host} cannot be used: {trouble}")
    return MlflowUnavailable(f"MLflow at {host} does not answer: {why}")


class _Bearer(AuthBase):
    """Adds a bearer token to requests, as MLflow's client does."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _NoCredentials(AuthBase):
    """Prevents `requests` from reading credentials from ~/.netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _auth(environ: Mapping[str, str]) -> AuthBase:
    user, password = environ.get("MLFLOW_TRACKING_USERNAME"), environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return HTTPBasicAuth(user, password)
    token = environ.get("MLFLOW_TRACKING_TOKEN")
    return _Bearer(token) if token else _NoCredentials()


def _document(answer: requests.Response) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(answer.content or b"{}", type=dict[str, Any])
    except DECODE_ERRORS:
        raise _unavailable(answer, answer.text) from None
    if answer.status_code == requests.codes.ok:
        return document
    code, message = str(document.get("error_code")), str(document.get("message"))
    if answer.status_code in {400, 404} and code in {INVALID, MISSING, EXISTS}:
        raise MlflowRefused(code, message[:_SHOWN_ANSWER_CHARS])
    raise _unavailable(answer, message)


def _unavailable(answer: requests.Response, message: str) -> MlflowUnavailable:
    status = answer.status_code
    meaning = _MEANING.get(status, "")
    shown = " ".join(message.split())[:_SHOWN_ANSWER_CHARS]
    text = f"MLflow answered {status}{meaning}: {shown}"
    is_failure = status >= requests.codes.internal_server_error
    return MlflowUnavailable(text, retry_after_s(answer.headers), failed_inside=is_failure)
