"""Levels in the forms in which logging libraries print them."""

from __future__ import annotations

import logging

import pytest

from trainwire.ingest.lines.log_levels import level_of, levels_of


@pytest.mark.parametrize(
    ("line", "level"),
    [
        # logging
        ("WARNING:root:disk is nearly full", "WARNING"),
        ("2026-11-23 10:00:00,123 - trainer.loop - INFO - epoch 1", "INFO"),
        ("2026-11-23 10:00:00,123 ERROR trainer: no data", "ERROR"),
        ("2026-11-23 10:00:00,123 trainer INFO epoch 1", "INFO"),
        ("[2026-11-23 10:00:00,123][__main__][DEBUG] - hydra", "DEBUG"),
        ("[2026-11-23 10:00:00,123] [WARNING] [accelerator.py:161:get] deepspeed", "WARNING"),
        ("[2026-11-23 10:00:00,123: FATAL/MainProcess] celery", "CRITICAL"),
        ("[INFO|trainer.py:7] 2026-11-23 10:00:00,123 >> transformers", "INFO"),
        ("INFO 11-23 10:00:00 engine.py:72] vllm", "INFO"),
        ("\x1b[32mINFO\x1b[0m:     uvicorn", "INFO"),
        # loguru
        ("2026-11-23 10:00:00.123 | SUCCESS  | __main__:main:7 - done", "SUCCESS"),
        ("\x1b[32m2026-11-23 10:00:00.123\x1b[0m | \x1b[31m\x1b[1mERROR   \x1b[0m | m:f:1 - no", "ERROR"),
        # absl, glog
        ("I1123 10:00:00.123456 140203 train.py:7] epoch 1", "INFO"),
        ("F20261123 10:00:00.123456 140203 loss.cc:7] Check failed", "CRITICAL"),
        # torch, TensorFlow
        ("[W1123 10:00:00.123456 socket.cpp:663] [c10d] no", "WARNING"),
        ("[W socket.cpp:663] [c10d] no", "WARNING"),
        ("[rank0]:[W1123 10:00:00.123456 ProcessGroupNCCL.cpp:1250] Warning: no", "WARNING"),
        ("E1123 10:00:00.123000 77 site-packages/torch/distributed/run.py:766] failed", "ERROR"),
        ("2026-11-23 10:00:00.123456: W tensorflow/core/common.cc:12] no", "WARNING"),
        # our own parts of long lines
        ("[part 1] ERROR:root:a long one", "ERROR"),
        # no level
        ("", None),
        ("epoch 1 loss=0.5", None),
        ("Error: no such file", None),
        ("ERRORS so far: 3", None),
        ("In the end all was well", None),
        ("the level was INFO", None),
        ("2026-11-23 10:00:00 it was the first ERROR today", None),
        ("[part 2] ERROR:root:what a long line quotes", None),
    ],
)
def test_levels_are_read_from_the_head_of_a_line(line: str, level: str | None) -> None:
    """A level is one where a logging library puts it, and a word anywhere else."""
    assert level_of(line) == level
    assert levels_of(["x", line]) == [None, level]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL])
@pytest.mark.parametrize("form", [logging.BASIC_FORMAT, "%(asctime)s - %(name)s - %(levelname)s - %(message)s"])
def test_what_logging_prints_is_read(level: int, form: str) -> None:
    """Every level of the standard library is found in the output of its own formatter."""
    record = logging.LogRecord("trainer", level, "train.py", 7, "epoch 1", None, None)
    assert level_of(logging.Formatter(form).format(record)) == logging.getLevelName(level)
