"""Callback for the `Trainer` of Hugging Face Transformers."""

from __future__ import annotations

import math
import os
import sys
from typing import Any, Final

from trainwire.ingest.run import Run
from trainwire.integrations.reporting import harmless

try:
    from transformers import TrainerCallback
except ImportError as exc:
    raise ImportError(
        f"trainwire.integrations.huggingface needs transformers, and its import fails ({exc}): "
        "pip install 'transformers[torch]'"
    ) from exc


AGREEMENT_STEPS: Final = 10
"""Number of steps after which several processes exchange whether one of them was asked to stop."""


class TrainwireCallback(TrainerCallback):
    """Reports the values that the `Trainer` logs, its progress and each checkpoint folder.

    Only the world process zero reports. The reported epoch is the current one, counted from 1. A training that a
    user asks to stop ends after the current step; several processes agree on it every ten steps.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    @harmless
    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Report the planned number of epochs, if it is known."""
        if state.is_world_process_zero and 0 < state.num_train_epochs < sys.maxsize:
            self._run.progress(total_epochs=state.num_train_epochs)

    @harmless
    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Report the values that the `Trainer` logs in training and evaluation, without its fractional epoch."""
        if state.is_world_process_zero:
            values = {name: value for name, value in (logs or {}).items() if name != "epoch"}
            self._run.metric(epoch=_epoch(state), step=state.global_step, values=values)
            self._report_progress(state)

    @harmless
    def on_epoch_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Report the progress after each epoch, even if the `Trainer` logs more rarely."""
        if state.is_world_process_zero:
            self._report_progress(state)

    @harmless
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the training if a user asks it to stop."""
        if args.world_size == 1:
            control.should_training_stop |= self._run.should_stop
        elif state.global_step % AGREEMENT_STEPS == 0 and _is_any(self._run.should_stop, args.device):
            control.should_training_stop = True

    @harmless
    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Report the checkpoint folder.

        Its kind is `best` if the `Trainer` counts this checkpoint as its best one so far, else `last`.
        """
        if not state.is_world_process_zero:
            return
        folder = f"checkpoint-{state.global_step}"
        is_best = os.path.basename(state.best_model_checkpoint or "") == folder
        self._run.checkpoint(
            os.path.join(args.output_dir, folder),
            kind="best" if is_best else "last",
            epoch=_epoch(state),
            step=state.global_step,
            metrics={args.metric_for_best_model: state.best_metric} if is_best else None,
        )

    def _report_progress(self, state: Any) -> None:
        if state.max_steps > 0:
            self._run.progress(epoch=_epoch(state), percent=min(100.0, 100 * state.global_step / state.max_steps))


def _is_any(flag: bool, device: Any) -> bool:
    """Return whether `flag` is true in at least one process of the training.

    All processes get the same answer, so that they end after the same step; otherwise they would hang.
    """
    import torch  # noqa: PLC0415 - transformers with several processes has it

    if not torch.distributed.is_initialized():
        return flag
    flags = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags.item())


def _epoch(state: Any) -> int | None:
    return None if state.epoch is None else math.ceil(state.epoch)
