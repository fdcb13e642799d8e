"""A trainer of the chaos test: says numbered lines and points for some seconds, then how many.

With a diary it notes there when it has said which line, for those who come after it is killed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import replace

from ingest import Run
from ingest.settings import Timing, TrainerSettings

TIMING = Timing(probe_after_s=2.0, patience_limit_s=5.0, settle_s=120.0, longest_backoff_s=1.0)
"""Impatient, so that trouble of seconds stands for trouble of minutes."""


def main(job_id: int, seconds: float, redis_url: str, diary_path: str = os.devnull) -> None:
    """Train; print what was said and how far it came as JSON."""
    logging.basicConfig(level=logging.WARNING)
    settings = replace(TrainerSettings.from_env(), redis_url=redis_url, timing=TIMING)
    run = Run(job_id=job_id, name=f"chaos {job_id}", settings=settings)
    ends = time.monotonic() + seconds
    said = 0
    diary = open(diary_path, "w", buffering=1)  # noqa: SIM115 - open until the process ends
    while time.monotonic() < ends:
        run.log(f"line {said}")
        diary.write(f"{said} {time.monotonic()}\n")
        if said % 10 == 0:
            run.metric(step=said, loss=1 / (said + 1))
        said += 1
        time.sleep(0.004)
    receipt = run.finish(timeout_s=150)
    print(json.dumps({"lines": said, "points": (said + 9) // 10, "complete": receipt.complete}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
