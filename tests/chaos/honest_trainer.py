"""An honest trainer of the audit: logs numbered lines, points and checkpoints, then prints how many as JSON."""

from __future__ import annotations

import json
import sys
import time

from trainwire import Run

LINES_PER_POINT = 10
LINES_PER_CHECKPOINT = 100


def main(job_id: int, token: str, seconds: float, pause_s: float) -> None:
    """Train for some seconds, with a pause after each line; each line and checkpoint begins with `token`."""
    run = Run(job_id, name=f"honest {job_id}")
    ends = time.monotonic() + seconds
    lines = 0
    while time.monotonic() < ends:
        run.log(f"{token} {lines}")
        if lines % LINES_PER_POINT == 0:
            run.metric(step=lines, loss=1 / (lines + 1))
        if lines % LINES_PER_CHECKPOINT == 0:
            run.checkpoint(f"s3://{token}/{lines}", kind="epoch", step=lines)
        lines += 1
        time.sleep(pause_s)
    began = time.monotonic()
    receipt = run.finish(timeout_s=60)
    counts = {"lines": lines, "complete": receipt.complete, "dropped": receipt.dropped}
    print(json.dumps(counts | {"finish_s": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
