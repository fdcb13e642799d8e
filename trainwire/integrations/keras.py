"""Keras 3, on any backend: a callback for `fit`, and a `ModelCheckpoint` that reports the files it saves."""

from __future__ import annotations

from typing import Any

from trainwire.ingest.run import Run
from trainwire.integrations.reporting import harmless, on_stop

try:
    import keras
except ImportError as exc:
    raise ImportError(
        f"trainwire.integrations.keras needs Keras 3 and a backend, and `import keras` fails ({exc}): "
        "pip install keras and jax, torch or tensorflow; KERAS_BACKEND selects one of them"
    ) from exc


class TrainwireCallback(keras.callbacks.Callback):
    """Reports the values and the learning rate at the end of each epoch, counted from 1.

    It does nothing at the end of a batch, because Keras would then wait for the device.
    A training that a user asks to stop ends after the current batch.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._is_training = False

    @harmless
    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras's signature
        """Report the planned number of epochs, and end this training if a user asks the run to stop."""
        self._is_training = True
        on_stop(self._run, self._stop)
        self._run.progress(total_epochs=self.params.get("epochs"))

    @harmless
    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras's signature
        """Ignore requests to stop that arrive after this call of `fit`."""
        self._is_training = False

    @harmless
    def _stop(self) -> None:
        """End the training: set `stop_training`, which `fit` checks after each batch.

        The thread that sends messages may call this.
        """
        if self._is_training:
            self.model.stop_training = True

    @harmless
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report the learning rate, and the training and validation values of an epoch."""
        optimizer = self.model.optimizer
        rate = {} if optimizer is None else {"learning_rate": float(optimizer.learning_rate)}
        self._run.metric(epoch=epoch + 1, step=_step(self.model), values={**rate, **(logs or {})})


class TrainwireCheckpoint(keras.callbacks.ModelCheckpoint):
    """A `ModelCheckpoint` of Keras that reports each saved file; after `run`, it takes the same arguments.

    The reported kind is `best` with `save_best_only`, else `last`.
    """

    def __init__(self, run: Run, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._run = run
        self._saved: list[str] = []

    def _should_save_model(self, epoch: int, batch: int | None, logs: Any, filepath: str) -> bool:
        should_save = bool(super()._should_save_model(epoch, batch, logs, filepath))
        if should_save:
            self._saved.append(filepath)
        return should_save

    def _save_model(self, epoch: int, batch: int | None, logs: Any) -> None:
        self._saved.clear()
        super()._save_model(epoch, batch, logs)
        for path in self._saved:
            self._report(path, epoch, logs or {})

    @harmless
    def _report(self, path: str, epoch: int, logs: Any) -> None:
        self._run.checkpoint(
            path,
            kind="best" if self.save_best_only else "last",
            epoch=epoch + 1,
            step=_step(self.model),
            metrics={self.monitor: logs.get(self.monitor)} if self.save_best_only else None,
        )


def _step(model: Any) -> int | None:
    """Return the number of optimizer steps so far; None if the model has no Keras optimizer."""
    return None if model.optimizer is None else int(model.optimizer.iterations)
