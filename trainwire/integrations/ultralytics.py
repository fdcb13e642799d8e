"""Ultralytics YOLO: callbacks for its models."""

from __future__ import annotations

from typing import Any

from trainwire.ingest.run import Run
from trainwire.integrations.reporting import harmless

try:
    from ultralytics.engine.model import Model
    from ultralytics.utils import RANK
except ImportError as exc:
    raise ImportError(
        f"trainwire.integrations.ultralytics needs ultralytics, and its import fails ({exc}): "
        "pip install ultralytics"
    ) from exc


def add_callbacks(model: Model, run: Run) -> None:
    """Report each training of `model` to `run`: the values of each epoch, counted from 1, and the checkpoints.

    A training that a user asks to stop ends after the batch, on several GPUs after the epoch, with its checkpoint.
    """
    reporter = _Reporter(run)
    model.add_callback("on_train_start", reporter.report_epochs)
    model.add_callback("on_train_batch_end", reporter.stop_after_batch)
    model.add_callback("on_train_epoch_end", reporter.note_training)
    model.add_callback("on_train_epoch_end", reporter.stop_if_asked)
    model.add_callback("on_fit_epoch_end", reporter.report_epoch)
    model.add_callback("on_model_save", reporter.report_checkpoints)
    model.add_callback("on_train_end", reporter.report_final)


class _Reporter:
    """Ultralytics callbacks that report the training of one model, from its first process only."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._has_trained = False

    def __reduce__(self) -> tuple[Any, tuple[int, int]]:
        """Pickle only the numbers of the job and the attempt, with which another process opens its own run.

        For several GPUs, Ultralytics sends pickled callbacks to new processes.
        """
        return _in_another_process, (self._run.job_id, self._run.attempt)

    def __deepcopy__(self, _memo: Any) -> _Reporter:
        """Return this object itself, because a copy of the model in this process reports to the same run."""
        return self

    @harmless
    def report_epochs(self, trainer: Any) -> None:
        """Report the planned number of epochs."""
        if _is_first_process():
            self._run.progress(total_epochs=trainer.epochs)

    @harmless
    def note_training(self, _trainer: Any) -> None:
        """Note that an epoch was trained, so that `report_epoch` reports it once.

        Ultralytics calls `on_fit_epoch_end` once more after the last epoch.
        """
        self._has_trained = True

    @harmless
    def stop_after_batch(self, trainer: Any) -> None:
        """End a training in a single process after this batch, if a user asks the run to stop.

        Several processes that end after different batches would hang.
        """
        if RANK == -1:
            self.stop_if_asked(trainer)

    @harmless
    def stop_if_asked(self, trainer: Any) -> None:
        """End the training if a user asks the run to stop.

        With several processes, Ultralytics informs the other ranks at the end of the epoch.
        """
        if _is_first_process() and self._run.should_stop:
            trainer.stop = True

    @harmless
    def report_epoch(self, trainer: Any) -> None:
        """Report losses, learning rates and validation results of an epoch."""
        if self._has_trained and _is_first_process():
            self._has_trained = False
            values = {
                "learning_rate": trainer.lr.get("lr/pg0"),
                **trainer.lr,
                **trainer.label_loss_items(trainer.tloss, prefix="train"),
                **(trainer.metrics or {}),
            }
            self._run.metric(epoch=trainer.epoch + 1, values=values)

    @harmless
    def report_checkpoints(self, trainer: Any) -> None:
        """Report `last.pt`, and `best.pt` if this epoch is the best so far."""
        self._run.checkpoint(trainer.last, kind="last", epoch=trainer.epoch + 1)
        if trainer.best_fitness == trainer.fitness:
            self._run.checkpoint(trainer.best, kind="best", epoch=trainer.epoch + 1, metrics=trainer.metrics)

    @harmless
    def report_final(self, trainer: Any) -> None:
        """Report the final checkpoint: the weights of the best epoch, without the optimizer's state."""
        self._run.checkpoint(trainer.best if trainer.best.exists() else trainer.last, kind="final")


def _in_another_process(job_id: int, attempt: int) -> _Reporter:
    return _Reporter(Run(job_id, attempt=attempt))


def _is_first_process() -> bool:
    return RANK in {-1, 0}
