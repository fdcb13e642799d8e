"""What a run has said so far, as far as its completion repeats it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainwire.schemas.messages import Checkpoint, Progress


@dataclass
class History:
    """Remembers the last epoch, the last value of each metric, and the last and the best checkpoint."""

    total_epochs: int | None = None
    epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_metrics: dict[str, float] | None = None
    best_epoch: int | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    final_checkpoint_path: str | None = None

    def progress_to(self, epoch: int | None, percent: float | None = None) -> Progress:
        """Note the epoch and return the progress it makes; the percentage follows from the epochs if unsaid."""
        if epoch is not None:
            self.epoch = epoch
        if percent is None and self.epoch is not None and self.total_epochs:
            percent = min(100.0, max(0.0, 100.0 * self.epoch / self.total_epochs))
        return Progress(current_epoch=self.epoch, total_epochs=self.total_epochs, progress_percent=percent)

    def note_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note where the newest checkpoint is, and the best one with its epoch and metrics."""
        self.last_checkpoint_path = checkpoint.uri
        if checkpoint.kind == "final":
            self.final_checkpoint_path = checkpoint.uri
        if checkpoint.is_best:
            self.best_checkpoint_path = checkpoint.uri
            self.best_epoch = checkpoint.epoch
            self.best_metrics = checkpoint.metrics
