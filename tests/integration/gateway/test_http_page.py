"""The page's files: addresses with the hash of their content, and compressed responses."""

from __future__ import annotations

import re

from tests.factories import Sender, drain, logs
from tests.gateway_server import GatewayServer
from trainwire.workers.resources import Resources

FOR_EVER = "public, max-age=31536000, immutable"


def test_files_below_their_hash_are_cached_for_ever(gateway: GatewayServer) -> None:
    """The document refers to files below the hash of all of them; only such an address is cached for ever."""
    document = gateway.request("GET", "/")
    assert document.headers["Cache-Control"] == "no-cache"
    addresses = re.findall(r'(?:src|href)="(page/[^"]+)"', document.text)
    assert len(addresses) > 40
    assert all(re.match(r"page/~[0-9a-f]{16}/", address) for address in addresses)
    for address in addresses:
        answer = gateway.request("GET", f"/{address}")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, FOR_EVER)
    main = next(address for address in addresses if address.endswith("js/main.js"))
    other = re.sub("~[0-9a-f]{16}", "~0123456789abcdef", main)
    for address in (other, "page/js/main.js"):
        answer = gateway.request("GET", f"/{address}")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache")
    assert gateway.request("GET", f"/{main}x").status_code == 404


def test_responses_are_compressed_but_not_events(
    gateway: GatewayServer, resources: Resources, sender: Sender
) -> None:
    """JSON and files are compressed for clients that accept it; a stream of events and a short answer are not."""
    sender.send(logs(*(f"line {number}" for number in range(200))), job=77)
    drain(resources, job=77)
    for path in ("/jobs/77/logs", "/page/js/main.js", "/jobs/77/logs/download"):
        packed = gateway.request("GET", path, headers={"Accept-Encoding": "gzip"})
        plain = gateway.request("GET", path, headers={"Accept-Encoding": "identity"})
        assert packed.headers.get("Content-Encoding") == "gzip"
        assert "Content-Encoding" not in plain.headers
        assert packed.content == plain.content
    assert "Content-Encoding" not in gateway.request("GET", "/healthz").headers
    with gateway.request("GET", "/jobs/77/events", headers={"Accept-Encoding": "gzip"}, stream=True) as events:
        assert "Content-Encoding" not in events.headers
        assert next(events.iter_lines())
