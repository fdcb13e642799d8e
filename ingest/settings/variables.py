"""Names of the environment variables that several modules of `ingest` read or export."""

from __future__ import annotations

from typing import Final

JOB_ID_VARIABLE: Final = "TRAINWIRE_JOB_ID"
JOB_NAME_VARIABLE: Final = "TRAINWIRE_JOB_NAME"
RESUME_VARIABLE: Final = "TRAINWIRE_RESUME_FROM_STEP"
ATTEMPT_VARIABLE: Final = "TRAINWIRE_ATTEMPT"
PARENT_VARIABLE: Final = "TRAINWIRE_PARENT_RUN"
CAPTURED_VARIABLE: Final = "TRAINWIRE_CAPTURED"
LAUNCHER_FOLDER_VARIABLE: Final = "TRAINWIRE_TRACEBACKS"
"""Kept under its first name, because a script may have another version of trainwire than its launcher."""
URL_VARIABLE: Final = "TRAINWIRE_URL"
TOKEN_VARIABLE: Final = "TRAINWIRE_TOKEN"  # noqa: S105 - a name
REDIS_URL_VARIABLE: Final = "REDIS_URL"
STREAMS_URL_VARIABLE: Final = "STREAMS_URL"
PROVENANCE_VARIABLE: Final = "TRAINWIRE_PROVENANCE"
WANDB_VARIABLE: Final = "TRAINWIRE_WANDB"
"""Name of the variable with the W&B mode, for a launcher without `--wandb` and for the hooks in a training."""
PAGE_URL_VARIABLE: Final = "TRAINWIRE_PAGE_URL"
DISABLED_VARIABLE: Final = "TRAINWIRE_DISABLED"
TRACE_VARIABLE: Final = "TRAINWIRE_TRACEPARENT"
"""Name of the variable with the span of the open run of the parent process; child processes are a part of it."""
SPOOL_VARIABLE: Final = "TRAINWIRE_SPOOL_DIR"
