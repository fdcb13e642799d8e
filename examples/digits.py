"""A real training, a few seconds long: scikit-learn's digits, shifted and noised, and a small network.

Run it under trainwire (`trainwire run -- python examples/digits.py`), or alone with
`REDIS_URL=... python examples/digits.py`.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from trainwire import Run

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
CLASSES = np.arange(10)
METRIC_EVERY_STEPS = 20


@dataclass(frozen=True)
class Options:
    """What the command line chooses."""

    epochs: int
    batch_size: int
    hidden: int
    learning_rate: float
    seed: int
    out: Path


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Return the images, each moved by up to one pixel in both directions and noised."""
    moved = images.reshape(-1, 8, 8)
    rows, columns = (rng.integers(-1, 2, size=len(images)) for _ in range(2))
    shifts = [
        np.roll(image, (row, column), axis=(0, 1)) for image, row, column in zip(moved, rows, columns, strict=True)
    ]
    noised: Floats = np.stack(shifts) + rng.normal(0, 0.05, size=moved.shape)
    return noised.reshape(len(images), 64)


def batches(
    images: Floats, labels: Labels, size: int, rng: np.random.Generator
) -> Iterator[tuple[Floats, Labels]]:
    """Yield shuffled mini-batches: each image as it is and five times changed."""
    many = np.concatenate([images, *(shifted(images, rng) for _ in range(5))])
    many_labels = np.tile(labels, 6)
    order = rng.permutation(len(many))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield many[chosen], many_labels[chosen]


def save(model: MLPClassifier, path: Path) -> Path:
    """Write the model to `path`, complete or not at all."""
    beside = path.with_suffix(".new")
    beside.write_bytes(pickle.dumps(model))
    return beside.replace(path)


def train(run: Run, options: Options) -> None:
    """Train for some epochs; metrics every few steps, accuracy and checkpoints every epoch."""
    rng = np.random.default_rng(options.seed)
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images / 16.0, labels, test_size=0.25, random_state=options.seed, stratify=labels
    )
    print(f"digits: {len(train_x)} images to learn from, {len(test_x)} to validate", flush=True)
    model = MLPClassifier(
        hidden_layer_sizes=(options.hidden, options.hidden),
        learning_rate_init=options.learning_rate,
        random_state=options.seed,
    )
    step, best_accuracy = 0, 0.0
    for epoch in range(1, options.epochs + 1):
        for batch_x, batch_y in batches(train_x, train_y, options.batch_size, rng):
            model.partial_fit(batch_x, batch_y, classes=CLASSES)
            step += 1
            if step % METRIC_EVERY_STEPS == 0:
                run.metric(epoch=epoch, step=step, loss=model.loss_, learning_rate=options.learning_rate)
        accuracy = float(model.score(test_x, test_y))
        run.metric(
            epoch=epoch, step=step, loss=model.loss_, accuracy=accuracy, learning_rate=options.learning_rate
        )
        run.progress(epoch=epoch)
        print(f"epoch {epoch}/{options.epochs}: loss {model.loss_:.4f}, val_accuracy {accuracy:.4f}", flush=True)
        run.checkpoint(save(model, options.out / "last.pkl"), kind="last", epoch=epoch, step=step)
        if accuracy > best_accuracy:
            best_accuracy = accuracy
            run.checkpoint(save(model, options.out / "best.pkl"), kind="best", epoch=epoch, step=step)
    print(f"best val_accuracy {best_accuracy:.4f}; checkpoints are in {options.out}", flush=True)


def parse_options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=128, help="neurons in each of the two hidden layers")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for best.pkl and last.pkl")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Train under a run of the launcher's job, or of a new one."""
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    params = {name: value for name, value in vars(options).items() if name != "out"}
    with Run(name="digits", total_epochs=options.epochs, params=params) as run:
        train(run, options)


if __name__ == "__main__":
    main()
