"""Recognizes exceptions that a signal handler of the training raises during a call of trainwire.

trainwire catches all exceptions of the code of others, such as the `__float__` of a logged value. A signal handler
that raises (a timeout by SIGALRM, a pre-emption by SIGTERM) can interrupt trainwire anywhere, and its exception
must not be caught.
"""

from __future__ import annotations

import functools
import signal
import threading
from types import CodeType


def raise_interruption(exc: BaseException) -> None:
    """Raise `exc` again if its traceback contains a signal handler, so that the training gets it."""
    if threading.current_thread() is not threading.main_thread():  # Python runs handlers there alone
        return
    trace, codes = exc.__traceback__, None
    while trace is not None:
        codes = _handler_codes() if codes is None else codes
        if trace.tb_frame.f_code in codes:
            raise exc
        trace = trace.tb_next


def _handler_codes() -> set[CodeType]:
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = (_code(handler) for handler in handlers if callable(handler))
    return {code for code in codes if code is not None}


def _code(handler: object) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)  # of a bound method
    if not hasattr(function, "__code__"):
        function = vars(type(handler)).get("__call__")
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None
