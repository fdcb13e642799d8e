"""Sends HTTP requests to a gateway, with Python's standard library only."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse
from importlib.metadata import version
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from trainwire.client.errors import ClientError, GatewayUnavailable, JobNotFound
from trainwire.schemas.gateway_urls import CA_PARAMETER, base_of, ca_file_of

TIMEOUT_S: Final = 60.0
_UNKNOWN_JOB: Final = "urn:trainwire:problem:unknown-job"
_DESCRIPTION: Final = "/openapi.json"
_NO_ROUTE: Final = "urn:trainwire:problem:http"
_NO_GATEWAY: Final = "give the address of the gateway itself, without the path of a page, in TRAINWIRE_URL or url="


class Gateway:
    """Sends requests to the gateway at `url`, with the access token if one is given.

    The methods raise `GatewayUnavailable` if there is no response, `JobNotFound` if the gateway does not know the
    job, and `ClientError` for any other error.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = base_of(url)
        self._opener = build_opener(_SafeRedirects, HTTPSHandler(context=_tls_of(ca_file_of(url))))
        self._headers = {"User-Agent": f"trainwire-client/{version('trainwire')}"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def json(
        self,
        path: str,
        query: Mapping[str, object] | None = None,
        *,
        method: str = "GET",
        document: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Send a request; return the JSON object of the response.

        `query` has the parameters of the URL (None: left out), and `document` the JSON body, if any.
        """
        with self.open(path, query or {}, method, document) as answer:
            try:
                found = json.loads(answer.read() or "{}")
            except (OSError, HTTPException) as exc:
                raise ClientError(f"{self.url} ended the answer before its end ({exc}): try again") from exc
            except (ValueError, RecursionError) as exc:
                raise ClientError(f"{self.url}{path} answers no JSON: {_NO_GATEWAY}") from exc
        if not isinstance(found, dict):
            raise ClientError(f"{self.url}{path} answers {type(found).__name__}: {self.versions()}")
        return found

    def open(
        self,
        path: str,
        query: Mapping[str, object],
        method: str = "GET",
        document: Mapping[str, object] | None = None,
    ) -> HTTPResponse:
        """Send a request; return the response, which the caller must read and close.

        `query` has the parameters of the URL (None: left out), and `document` the JSON body, if any.
        """
        try:
            shown = urlencode({name: value for name, value in query.items() if value is not None})
        except UnicodeEncodeError as exc:
            raise ClientError(f"{exc.object[:100]!r} has an invalid character: remove it") from exc
        url = f"{self.url}{path}?{shown}" if shown else self.url + path
        headers = self._headers if document is None else self._headers | {"Content-Type": "application/json"}
        body = None if document is None else json.dumps(document).encode()
        request = Request(url, body, headers, method=method)  # noqa: S310 - `find_address` has checked it
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        except HTTPError as exc:
            raise self._refusal(path, exc) from exc
        except (URLError, OSError, HTTPException) as exc:
            reason = getattr(exc, "reason", None) or exc
            raise GatewayUnavailable(
                f"no gateway answers at {self.url} ({reason}): start `trainwire up` or correct TRAINWIRE_URL"
            ) from exc
        return answer

    def _refusal(self, path: str, exc: HTTPError) -> ClientError:
        try:
            problem = json.loads(exc.read())
            kind, detail = problem["type"], _detail(problem)
        except (ValueError, RecursionError, KeyError, TypeError, OSError, HTTPException):
            return ClientError(f"{self.url}{path} answers {exc.code} {exc.reason}: {_NO_GATEWAY}")
        if kind == _UNKNOWN_JOB:
            return JobNotFound(detail)
        if exc.code == 401:
            sent = "Authorization" in self._headers
            remedy = "is wrong, expired or revoked" if sent else "is missing"
            return ClientError(
                f"the token of {self.url} {remedy} ({detail}): set TRAINWIRE_TOKEN to one that "
                "`trainwire token create` prints"
            )
        # An older gateway has no such route, or takes `resolve` for the number of a job.
        is_newer = path.endswith(("/download", "/resolve"))
        is_absent = exc.code in {404, 405} and (is_newer or kind == _NO_ROUTE) and path != _DESCRIPTION
        if is_absent or (is_newer and detail.startswith("job_id=")):
            return ClientError(f"{self.url}{path} answers {exc.code} ({detail}): {self.versions()}")
        return ClientError(f"{self.url}{path}: {detail}")

    def versions(self) -> str:
        """Return advice for an unexpected response, which compares the versions of the gateway and this client."""
        ours = version("trainwire")
        try:
            theirs = self.json(_DESCRIPTION)["info"]["version"]
        except (ClientError, KeyError, TypeError):
            return _NO_GATEWAY
        if theirs == ours:
            return f"client and gateway are both {ours}, so something between them changes addresses or answers"
        return f"the gateway is {theirs} and this client {ours}: upgrade the older one"


class _SafeRedirects(HTTPRedirectHandler):
    """Follows redirects only to the same host, and never from https to http.

    urllib sends the token along with a redirected request, and no other host may receive it.
    """

    def redirect_request(  # noqa: PLR0917 - the signature of urllib
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.hostname != old.hostname or (old.scheme == "https" and new.scheme != "https"):
            raise ClientError(
                f"{old.hostname} redirects to {new.scheme}://{new.netloc[:200]}, where the token is not sent "
                "without your consent: write this address into TRAINWIRE_URL if it is right"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _tls_of(ca_file: str | None) -> ssl.SSLContext | None:
    """Return a TLS context that trusts the CA certificates in `ca_file`; None if no file is given."""
    try:
        return None if ca_file is None else ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ClientError(f"{CA_PARAMETER}={ca_file!r} in the gateway's address cannot be read: {exc}") from exc


def _detail(problem: dict[str, Any]) -> str:
    """Return the error text of a problem document; it lists the invalid values, if the document has any."""
    errors = [f"{each['field']}={each['value']!r}: {each['detail']}" for each in problem.get("errors", ())]
    return "; ".join(errors) or str(problem["detail"])
