"""Installs the failpoints in a process that a run starts as a command; Python imports this module at its start."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if "CERTIFY_RECORD" in os.environ and "-S" not in sys.orig_argv:
    from tests.certify.failpoints import Failpoints, Failure, install

    _failure = json.loads(os.environ["CERTIFY_FAILURE"])
    _points = Failpoints(Path(os.environ["CERTIFY_RECORD"]), Failure(*_failure) if _failure else None)
    _points.role = "launcher" if "run" in sys.orig_argv[:4] else "training"
    install(_points)
