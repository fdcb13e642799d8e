"""The field `traceparent` comes from other programs; the variables of a collector decide whether it is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.schemas.tracing import checked_traceparent, export_problem, is_exporting
from trainwire.schemas.wire.exchange import WireEntry

VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = VALID[3:35], VALID[36:52]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (VALID, VALID),
        (VALID.encode(), VALID),
        (f"01{VALID[2:]}", VALID),
        (f"cc{VALID[2:]}-what-comes-later", VALID),
        (f"{VALID[:-2]}00", f"{VALID[:-2]}00"),
        (f"{VALID[:-2]}ff", f"{VALID[:-2]}03"),
    ],
    ids=["text", "bytes", "later version", "more fields", "not sampled", "unknown flags"],
)
def test_valid_values(value: object, expected: str) -> None:
    """A value is returned in version 00, with the flags that this version knows."""
    assert checked_traceparent(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "00", None, 7, 1.5, [VALID], {VALID: 1}, b"\xff" * 55, "0" * 55, "\0" * 55, "x" * 10**6),
        *(f"ff{VALID[2:]}", f"{VALID}-", f"{VALID}0", f"{VALID} ", f" {VALID}", f"{VALID}\n", VALID.upper()),
        *(VALID.replace(TRACE, "0" * 32), VALID.replace(SPAN, "0" * 16), VALID.replace("-", "_")),
        *(VALID.replace("0af", "\u0660af"), f"01{VALID[2:]}x", f"01{VALID[2:]}-" + "x" * 10**6),
    ],
    ids=lambda value: repr(value)[:70],
)
def test_invalid_values_are_ignored(value: object) -> None:
    """Whatever is not a traceparent is none, and raises nothing."""
    assert checked_traceparent(value) is None


@given(
    st.one_of(
        st.text(), st.binary(), st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")
    )
)
def test_what_is_returned_is_valid(value: object) -> None:
    """A returned value is a traceparent of version 00, of which each check returns the same."""
    found = checked_traceparent(value)
    assert found is None or (found.startswith("00-") and len(found) == 55 and checked_traceparent(found) == found)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "console, otlp"}, True),
    ],
)
def test_when_traces_are_exported(environ: dict[str, str], expected: bool) -> None:
    """A collector for traces switches tracing on, unless a variable of OpenTelemetry disables it."""
    assert is_exporting(environ) is expected


def test_the_address_is_not_repeated() -> None:
    """The sentence about an unusable address has no password, and the protocol for traces takes precedence."""
    problem = export_problem({"OTEL_EXPORTER_OTLP_ENDPOINT": "user:sesame@collector:4318"})
    assert problem is not None
    assert "sesame" not in problem
    protocols = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    assert export_problem({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", **protocols}) is None


@pytest.mark.parametrize(("given", "has_field"), [(VALID, True), ("x", False), ([VALID], False), (None, False)])
def test_an_entry_over_https(given: object, has_field: bool) -> None:
    """The fields of an entry for Redis have a valid traceparent, or none."""
    fields = WireEntry(1, 42, 0, "0-a", 1, "json", b"{}", traceparent=given).stream_fields()
    assert fields.get("traceparent") == (VALID if has_field else None)
    assert ("traceparent" in fields) is has_field
