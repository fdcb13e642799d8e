"""Random requests to all operations of the OpenAPI document get one of the described responses.

A small replacement of schemathesis (docs/decisions/0010-schemathesis-by-hand.md).
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.factories import Sender, checkpoint, completion, drain, logs, metrics
from tests.gateway_server import GatewayServer
from trainwire.workers.resources import Resources

JOB: Final = 4_321
STREAMS: Final = ("/events",)
"""Endless responses."""
JSON_NULL: Final = {"type": "null"}

odd_text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\x00", "%", "NaN", "-1", "1e999", "é", "\U0001f4a5", "a,b", "'; --", "٣"]),
)
odd_number = st.sampled_from([-(2**63) - 1, -1, 0, 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**30])
odd_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), odd_number),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def known_job(gateway: GatewayServer, resources: Resources, sender: Sender) -> GatewayServer:
    """A gateway with one job that has rows of each kind."""
    for body in (logs("a", "b"), metrics(epoch=0, loss=0.0), checkpoint(), completion()):
        sender.send(body, job=JOB)
    for kind in ("logs", "metrics", "checkpoints", "completions"):
        drain(resources, kind, JOB)
    return gateway


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that roughly fit the schema of a parameter or field, and often values that do not."""
    if "anyOf" in schema:
        return st.one_of(*(values(each) for each in schema["anyOf"] if each != JSON_NULL), st.none())
    match schema.get("type"):
        case "integer":
            fitting: st.SearchStrategy[Any] = st.integers(schema.get("minimum", 0), schema.get("maximum", 100))
        case "array":
            fitting = st.lists(values(schema.get("items", {})), max_size=3)
        case "number":
            fitting = st.floats()
        case "string" if "enum" in schema:
            fitting = st.sampled_from(schema["enum"])
        case "object":
            fitting = st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5), max_size=3)
        case _:
            fitting = odd_text
    return st.one_of(fitting, fitting, odd_number, odd_text)


def bodies(document: dict[str, Any], operation: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return bodies for an operation: some of its fields with such values, or anything at all."""
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    fields = {key: values(schema) for key, schema in document["components"]["schemas"][name]["properties"].items()}
    return st.one_of(st.fixed_dictionaries({}, optional=fields), odd_json)


def requests_of(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return requests to the operations of the document, each with some of its parameters."""
    chosen = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.endswith(STREAMS):
                continue
            parameters = operation.get("parameters", [])
            parts = {
                each["name"]: st.one_of(st.just(JOB), st.just(1), values(each["schema"]))
                for each in parameters
                if each["in"] == "path"
            }
            query = {each["name"]: values(each["schema"]) for each in parameters if each["in"] == "query"}
            chosen.append(
                st.fixed_dictionaries(
                    {
                        "method": st.just(method.upper()),
                        "path": st.just(path),
                        "parts": st.fixed_dictionaries(parts),
                        "params": st.fixed_dictionaries({}, optional=query),
                        "json": bodies(document, operation) if "requestBody" in operation else st.none(),
                    }
                )
            )
    return st.one_of(chosen)


def test_every_answer_is_one_that_is_described(known_job: GatewayServer) -> None:
    """Odd numbers, odd text and odd bodies are answered with a documented status and content type."""
    document = known_job.get("/openapi.json")

    @settings(max_examples=120, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(requests_of(document))
    def holds(request: dict[str, Any]) -> None:
        parts = {name: quote(str(part), safe="") or "%20" for name, part in request["parts"].items()}
        sent: dict[str, Any] = {}
        if request["method"] == "POST":  # json.dumps, unlike requests, also sends NaN and the infinities
            sent = {"data": json.dumps(request["json"]), "headers": {"Content-Type": "application/json"}}
        answer = known_job.request(
            request["method"], request["path"].format(**parts), params=_sendable(request["params"]), **sent
        )
        if answer.status_code == 404 and answer.json()["type"].endswith(":http"):
            return  # the path's own parts made it another path
        described = document["paths"][request["path"]][request["method"].lower()]["responses"]
        kinds = described.get(str(answer.status_code), {}).get("content", {"": None})
        assert answer.status_code != 500
        assert str(answer.status_code) in described, answer.text
        assert answer.headers.get("Content-Type", "").partition(";")[0] in {*kinds, "application/problem+json"}

    holds()


def _sendable(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
