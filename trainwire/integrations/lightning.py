"""Lightning: a logger for its `Trainer`, and a `ModelCheckpoint` that reports the files it saves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from trainwire.ingest.run import Run
from trainwire.integrations.reporting import harmless, report_params

try:
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.loggers.logger import Logger
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities import rank_zero_only
except ImportError as exc:
    raise ImportError(
        f"trainwire.integrations.lightning needs lightning, and its import fails ({exc}): pip install lightning"
    ) from exc


AGREEMENT_STEPS: Final = 10
"""Number of steps after which several processes exchange whether one of them was asked to stop."""


class TrainwireLogger(Logger):
    """Reports the values that modules log, and their hyperparameters, from the process with rank 0.

    The reported epoch is the current one, counted from 1 (Lightning counts from 0).
    A training that a user asks to stop ends after the current batch; several processes agree on it every ten
    batches.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._is_training = False

    @property
    def name(self) -> str:
        """The name of the checkpoint folder, below the root folder of the `Trainer`."""
        return "trainwire"

    @property
    def version(self) -> str:
        """The name of the job's folder, such as `job_7`, below the folder `name`."""
        return f"job_{self._run.job_id}"

    @property
    def experiment(self) -> Run:
        """The run, so that a module can call `self.logger.experiment.log("...")`."""
        return self._run

    @rank_zero_only
    @harmless
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Report values that a module has logged at `step`, with the epoch among them counted from 1."""
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        if epoch is not None:
            epoch = int(epoch) + self._is_training  # after the training it is the number of finished epochs
        self._run.metric(epoch=epoch, step=step, values=values)

    @harmless
    def log_graph(self, model: Any, *_: Any, **__: Any) -> None:
        """Report the planned number of epochs if a training begins, and listen for requests to stop.

        Lightning also calls this method for validation and tests.
        """
        trainer = model.trainer
        if not any(isinstance(callback, StopOnRequest) for callback in trainer.callbacks):
            trainer.callbacks.append(StopOnRequest(self._run))
        self._note_training(trainer)

    @rank_zero_only
    def _note_training(self, trainer: Any) -> None:
        self._is_training = trainer.state.fn == TrainerFn.FITTING
        if self._is_training and (trainer.max_epochs or 0) > 0:
            self._run.progress(total_epochs=trainer.max_epochs)

    @rank_zero_only
    @harmless
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Report hyperparameters; they replace the params that the run has reported before."""
        report_params(self._run, params if isinstance(params, Mapping) else vars(params))


class StopOnRequest(Callback):
    """Ends the training of a `Trainer` if a user asks the run to stop; `TrainwireLogger` adds it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @harmless
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """End the training after this batch if a user asks the run to stop.

        Several processes all end after the same batch; otherwise they would hang.
        """
        if trainer.world_size == 1:
            is_asked = self._run.should_stop
        elif trainer.global_step % AGREEMENT_STEPS:
            return
        else:
            is_asked = trainer.strategy.reduce_boolean_decision(self._run.should_stop, all=False)
        if is_asked:
            trainer.should_stop = True


class TrainwireCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` of Lightning that reports each saved file; besides `run`, it takes the same keywords.

    The reported kind is `best` for the file that is the best by `monitor`, else `last`.
    """

    def __init__(self, run: Run, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run = run

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            self._report(trainer, filepath)

    @harmless
    def _report(self, trainer: Any, filepath: str) -> None:
        is_best = self.monitor is not None and os.fspath(filepath) == self.best_model_path
        self._run.checkpoint(
            filepath,
            kind="best" if is_best else "last",
            epoch=trainer.current_epoch + 1,
            step=trainer.global_step,
            metrics={self.monitor: self.best_model_score} if is_best else None,
        )
