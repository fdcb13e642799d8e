"""Restricts access to Flower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import flower.options  # noqa: F401 - defines the options that are set below
from flower.app import Flower
from flower.views.monitor import Metrics
from tornado.httputil import HTTPServerRequest
from tornado.options import options
from tornado.web import Application, RequestHandler, authenticated

from trainwire.stores.local_hosts import is_local_host, is_loopback
from trainwire.stores.settings import WrongSettings

COLUMNS: Final = "name,args,uuid,state,received,runtime,worker"


def prepare(address: str, environ: Mapping[str, str]) -> None:
    """Restrict Flower, which is to listen on `address`, to the user and password from the environment.

    Without them, it accepts only requests to names like `localhost`. Raises `WrongSettings` if other machines
    could use it without a password, because Flower can stop workers, and if only one of user and password is set.
    """
    credentials = credentials_for(address, environ)
    if credentials is None:
        Flower.find_handler = _find_local_handler
    else:
        # Not on the command line, which `ps` shows, nor in Flower's own variable, which splits at commas.
        options.basic_auth = [credentials]
        # Flower itself requires no password for this page.
        Metrics.get = authenticated(Metrics.get)


def credentials_for(address: str, environ: Mapping[str, str]) -> str | None:
    """Return `user:password` from the environment, or None if they are not set and the address is a loopback one.

    Raises `WrongSettings` otherwise, and if the user contains a colon.
    """
    user, password = environ.get("FLOWER_USER", ""), environ.get("FLOWER_PASSWORD", "")
    if ":" in user:
        raise WrongSettings("FLOWER_USER has a colon, which basic authentication does not allow")
    if user and password:
        return f"{user}:{password}"
    if user or password:
        missing = "FLOWER_PASSWORD" if user else "FLOWER_USER"
        raise WrongSettings(f"{missing} is not set: FLOWER_USER and FLOWER_PASSWORD go together")
    if not is_loopback(address):
        raise WrongSettings(
            f"--address {address or '(all)'} lets others see Flower, and stop workers with it: set FLOWER_USER "
            "and FLOWER_PASSWORD, or leave it on 127.0.0.1"
        )
    return None


class ForeignHost(RequestHandler):
    """Refuses requests whose Host header names another site than this server, as in DNS rebinding attacks."""

    def prepare(self) -> None:
        """Respond with status 403."""
        self.set_status(403)
        self.finish(
            f"host {self.request.host[:200]!r}: without FLOWER_USER and FLOWER_PASSWORD Flower answers only names "
            "like localhost\n"
        )

    def set_default_headers(self) -> None:
        """Set the content type to plain text, because the response contains the Host header of the request."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")


def _find_local_handler(application: Application, request: HTTPServerRequest, **more: Any) -> Any:
    if is_local_host(request.host):
        return Application.find_handler(application, request, **more)
    return application.get_handler_delegate(request, ForeignHost)
