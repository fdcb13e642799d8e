"""The gateway's settings: wrong ones are named before anything starts."""

from __future__ import annotations

import pytest

from trainwire.gateway.__main__ import main


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GATEWAY_PORT", "web", "GATEWAY_PORT Input should be a valid integer"),
        ("GATEWAY_AUTH", "off", "GATEWAY_AUTH Input should be 'auto' or 'on'"),
        ("GATEWAY_REQUESTS_PER_S", "0", "GATEWAY_REQUESTS_PER_S Input should be greater than 0"),
        (
            "GATEWAY_TRUSTED_PROXIES",
            "127.0.0.1, nginx",
            "GATEWAY_TRUSTED_PROXIES has 'nginx', which is no",
        ),
        ("GATEWAY_TRUSTED_PROXIES", "10.0.0.1/8", "GATEWAY_TRUSTED_PROXIES has '10.0.0.1/8'"),
        ("GATEWAY_TRUSTED_PROXIES", "*", "use an address like 127.0.0.1 or a network like 10.0.0.0/8"),
        ("GATEWAY_TRUSTED_PROXIES", "::/0", "GATEWAY_TRUSTED_PROXIES trusts every client (::/0)"),
        ("DATABASE_URL", "mysql://u:hush@h/db", "DATABASE_URL starts with mysql://"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and the allowed values, and contains no password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hush@h/db")
    monkeypatch.setenv("REDIS_URL", "redis://h")
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("trainwire.gateway.__main__.configure_logging", lambda: None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert said in str(caught.value.code)
    assert "hush" not in str(caught.value.code)
