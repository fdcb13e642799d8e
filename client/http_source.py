"""Reads from a gateway over HTTP, with the standard library alone."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from importlib.metadata import version
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

import msgspec

from trainwire.client.errors import ClientError, GatewayUnavailable, JobNotFound
from trainwire.client.records import CheckpointInfo, JobInfo, R, StopInfo, record
from trainwire.client.source import Candidates, LogPage, LogQuery
from trainwire.schemas.events import LogLine
from trainwire.schemas.gateway_urls import CA_PARAMETER, base_of, ca_file_of
from trainwire.schemas.messages import FINISHED
from trainwire.schemas.metric_download import LENGTH_BYTES, MetricBlock, WrongBlock, decode_frame

TIMEOUT_S: Final = 60.0
PAGE_JOBS: Final = 200
PAGE_LINES: Final = 5000
PAGE_CHECKPOINTS: Final = 1000
CUT_CHARS: Final = 64 * 1024
"""The gateway cuts longer lines, except on a page of one line."""
RECONNECT_S: Final = 1.0
_ENDS: Final = ("training_complete", "training_error", "training_deleted")
_UNKNOWN_JOB: Final = "urn:trainwire:problem:unknown-job"


class HttpSource:
    """A gateway at `url`; with a token where it requires one."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = base_of(url)
        self._opener = build_opener(_SafeRedirects, HTTPSHandler(context=_tls_of(ca_file_of(url))))
        self._headers = {"User-Agent": f"trainwire-client/{version('trainwire')}"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"HttpSource({self._url!r})"

    def jobs(self, filter: str | None, sort: str | None, most: int | None) -> Iterator[JobInfo]:  # noqa: A002
        """Yield matching jobs, page by page."""
        cursor, left = None, most
        while left is None or left > 0:
            limit = PAGE_JOBS if left is None else min(PAGE_JOBS, left)
            page = self._json("/jobs", {"filter": filter, "sort": sort, "limit": limit, "cursor": cursor})
            yield from (self._record(JobInfo, item) for item in page["items"])
            left = None if left is None else left - len(page["items"])
            cursor = page["next"]
            if cursor is None:
                return

    def find(self, reference: str) -> Candidates:
        """Return the jobs that a reference names."""
        found = self._json("/jobs/resolve", {"reference": reference})
        with self._same_version():
            jobs = [(item["id"], item["name"], item["status"]) for item in found["items"]]
            return Candidates(jobs, found["total"], found.get("also_named"))  # absent in older gateways

    def job(self, job_id: int) -> JobInfo:
        """Return a job; raise `JobNotFound`."""
        return self._record(JobInfo, self._json(f"/jobs/{job_id}"))

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop; a gateway with tokens takes the token's name as `by`."""
        return self._record(StopInfo, self._json(f"/jobs/{job_id}/stop", body={"reason": reason, "by": by or ""}))

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        """Yield all points of these metrics, of all without names."""
        path = f"/jobs/{job_id}/metrics/download"
        with self._open(path, {"names": ",".join(names) or None}) as answer:
            while True:
                block = self._block(answer)
                if not block.rows:
                    return
                yield block

    def logs(self, job_id: int, query: LogQuery, after: int) -> LogPage:
        """Return the first matching lines after `after`; lines that the gateway has cut are requested alone."""
        path, fields = f"/jobs/{job_id}/logs", query._asdict()
        page = self._json(path, {**fields, "after": after, "limit": PAGE_LINES})
        lines = []
        for item in page["items"]:
            whole = item
            if len(item["text"]) >= CUT_CHARS:
                whole = self._json(path, {"after": item["seq"] - 1, "limit": 1})["items"][0]
            lines.append(msgspec.convert(whole, LogLine))
        scanned = page.get("scanned")
        if scanned:
            return LogPage(lines, scanned["last_seq"])
        return LogPage(lines, lines[-1].seq if len(lines) == PAGE_LINES else None)

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        """Return all checkpoints in the order of `seq`."""
        found: list[CheckpointInfo] = []
        while True:
            before = found[0].seq if found else None
            items = self._json(f"/jobs/{job_id}/checkpoints", {"before": before})["items"]
            found = [self._record(CheckpointInfo, item) for item in items] + found
            if len(items) < PAGE_CHECKPOINTS:
                return found

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        """Return a signed URL of a checkpoint's file."""
        return str(self._json(f"/jobs/{job_id}/checkpoints/{seq}/url")["url"])

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a job until it has ended; where the connection ends, connect again and go on.

        Only the first connection raises `GatewayUnavailable`: a gateway may restart meanwhile.
        """
        position: str | None = None
        while True:
            try:
                with self._open(f"/jobs/{job_id}/events", {"after": position}) as answer:
                    rows: list[int] | None = None
                    for found, event in _events(answer):
                        position = found or position
                        yield event
                        rows = _rows_at_end(event) or rows
                        if event["type"] in _ENDS or (rows and position and _has_all(position, rows)):
                            return
            except GatewayUnavailable:
                if position is None:
                    raise
            except (OSError, HTTPException):  # the connection ended within an event
                pass
            time.sleep(RECONNECT_S)

    def close(self) -> None:
        """Every request has a connection of its own."""

    def _block(self, answer: HTTPResponse) -> MetricBlock:
        try:
            size = int.from_bytes(_exactly(answer, LENGTH_BYTES))
            return decode_frame(_exactly(answer, size))
        except (OSError, HTTPException) as exc:
            raise ClientError(f"{self._url} ended the answer before its end ({exc}): try again") from exc
        except WrongBlock as exc:
            raise ClientError(f"{exc}: {self._versions()}") from exc

    def _record(self, kind: type[R], fields: dict[str, Any]) -> R:
        with self._same_version():
            return record(kind, fields)

    def _json(
        self, path: str, query: Mapping[str, object] | None = None, body: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        with self._open(path, query or {}, body) as answer:
            try:
                found = json.loads(answer.read())
            except (OSError, HTTPException) as exc:
                raise ClientError(f"{self._url} ended the answer before its end ({exc}): try again") from exc
            except ValueError as exc:
                raise ClientError(f"{self._url}{path} answers no JSON: is it the address of a gateway?") from exc
        if not isinstance(found, dict):
            raise ClientError(f"{self._url}{path} answers {type(found).__name__}: {self._versions()}")
        return found

    def _open(
        self, path: str, query: Mapping[str, object], body: Mapping[str, object] | None = None
    ) -> HTTPResponse:
        """Send a GET, or a POST of a JSON body."""
        headers, data = self._headers, None
        if body is not None:
            headers, data = {**headers, "Content-Type": "application/json"}, json.dumps(body).encode()
        try:
            shown = urlencode({name: value for name, value in query.items() if value is not None})
        except UnicodeEncodeError as exc:
            raise ClientError(f"{exc.object[:100]!r} has an invalid character: remove it") from exc
        url = f"{self._url}{path}?{shown}" if shown else self._url + path
        request = Request(url, data, headers)  # noqa: S310 - an address that `find_address` has checked
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        except HTTPError as exc:
            raise self._refusal(path, exc) from exc
        except (URLError, OSError, HTTPException) as exc:
            reason = getattr(exc, "reason", None) or exc
            raise GatewayUnavailable(
                f"no gateway answers at {self._url} ({reason}): start `trainwire up` or correct TRAINWIRE_URL"
            ) from exc
        return answer

    def _refusal(self, path: str, exc: HTTPError) -> ClientError:
        try:
            problem = json.loads(exc.read())
            kind, detail = problem["type"], _detail(problem)
        except (ValueError, KeyError, TypeError, OSError, HTTPException):
            text = f"{self._url}{path} answers {exc.code} {exc.reason}"
            return ClientError(f"{text}: is it the address of a gateway?")
        if kind == _UNKNOWN_JOB:
            return JobNotFound(detail)
        if exc.code == 401:
            sent = "Authorization" in self._headers
            remedy = "is wrong, expired or revoked" if sent else "is missing"
            return ClientError(
                f"the token of {self._url} {remedy} ({detail}): set TRAINWIRE_TOKEN to one that "
                "`trainwire token create` prints"
            )
        if path.endswith(("/download", "/resolve")) and exc.code in {404, 422}:
            return ClientError(f"{self._url}{path} answers {exc.code} ({detail}): {self._versions()}")
        return ClientError(f"{self._url}{path}: {detail}")

    @contextmanager
    def _same_version(self) -> Iterator[None]:
        """Translate the errors of a document that has another form."""
        try:
            yield
        except (msgspec.ValidationError, KeyError, TypeError) as exc:
            raise ClientError(f"{self._url} answers in another form ({exc}): {self._versions()}") from exc

    def _versions(self) -> str:
        ours = version("trainwire")
        try:
            theirs = self._json("/openapi.json")["info"]["version"]
        except (ClientError, KeyError, TypeError):
            theirs = "of another version"
        return f"the gateway is {theirs} and this client {ours}: upgrade the older one"


class _SafeRedirects(HTTPRedirectHandler):
    """Follows redirects on the same host: the token, which urllib sends along, is for no other place."""

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
    """Return the TLS settings for the file of a private CA; None for the usual ones."""
    try:
        return None if ca_file is None else ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ClientError(f"{CA_PARAMETER}={ca_file!r} in the gateway's address cannot be read: {exc}") from exc


def _detail(problem: dict[str, Any]) -> str:
    """Return the text of a problem document, with the invalid values."""
    errors = [f"{each['field']}={each['value']!r}: {each['detail']}" for each in problem.get("errors", ())]
    return "; ".join(errors) or str(problem["detail"])


def _rows_at_end(event: dict[str, Any]) -> list[int] | None:
    """Return how many rows of each kind an ended job has, from the first event of a connection."""
    if event["type"] not in ("snapshot", "resumed") or event["job"]["status"] not in FINISHED:
        return None
    return [event["job"]["rows"][kind] for kind in ("logs", "metrics", "checkpoints")]


def _has_all(position: str, rows: Sequence[int]) -> bool:
    """Return whether a position of the feed is behind these rows."""
    return all(int(seen) >= count for seen, count in zip(position.split("-"), rows, strict=True))


def _exactly(answer: HTTPResponse, size: int) -> bytes:
    data = answer.read(size)
    if len(data) < size:
        raise OSError(f"{len(data)} of {size} bytes came")
    return data


def _events(answer: HTTPResponse) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield the position and the data of each server-sent event."""
    position, data = None, ""
    for raw in answer:
        name, _, value = raw.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            position = value
        elif name == "data":
            data += value
        elif not name and not value and data:
            yield position, json.loads(data)
            data = ""
