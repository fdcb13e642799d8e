"""A training of a few seconds without dependencies: a small network learns to recognize drawn digits.

`trainwire demo` runs it. To run it alone: `TRAINWIRE_JOB_ID=1 python -m trainwire.cli.demo.digits`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Final

from trainwire import Run

DIGITS: Final = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "01110 10001 00001 00110 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
"""The pattern of each digit: seven rows of five pixels."""
SIDE: Final = 9
NOISE: Final = 0.3
TRAINING_IMAGES: Final = 900
VALIDATION_IMAGES: Final = 200
METRIC_EVERY_STEPS: Final = 20

Image = list[float]
Labelled = tuple[Image, int]


@dataclass(frozen=True)
class Options:
    """Command-line options of the training."""

    epochs: int
    hidden: int
    learning_rate: float
    seed: int
    out: Path


class Network:
    """A network with one hidden layer (ReLU) and softmax, trained with one image per step."""

    def __init__(self, hidden: int, rng: random.Random) -> None:
        spread = math.sqrt(2 / SIDE**2)
        self.inner = [[rng.gauss(0, spread) for _ in range(SIDE**2)] for _ in range(hidden)]
        self.outer = [[rng.gauss(0, math.sqrt(1 / hidden)) for _ in range(hidden)] for _ in DIGITS]

    def learn(self, image: Image, label: int, rate: float) -> float:
        """Take one step of gradient descent, and return the loss before the step."""
        active, chances = self._forward(image)
        errors = [chance - (digit == label) for digit, chance in enumerate(chances)]
        for index, value in enumerate(active):
            if value:
                back = sum(error * row[index] for error, row in zip(errors, self.outer, strict=True)) * rate
                weights = self.inner[index]
                self.inner[index] = [weight - back * pixel for weight, pixel in zip(weights, image, strict=True)]
        for digit, error in enumerate(errors):
            step, row = error * rate, self.outer[digit]
            self.outer[digit] = [weight - step * value for weight, value in zip(row, active, strict=True)]
        return -math.log(max(chances[label], 1e-12))

    def read(self, image: Image) -> int:
        """Return the digit that the network considers most likely for the image."""
        chances = self._forward(image)[1]
        return chances.index(max(chances))

    def _forward(self, image: Image) -> tuple[list[float], list[float]]:
        active = [max(0.0, sum(map(mul, weights, image))) for weights in self.inner]
        scores = [sum(map(mul, weights, active)) for weights in self.outer]
        highest = max(scores)
        powers = [math.exp(score - highest) for score in scores]
        total = sum(powers)
        return active, [power / total for power in powers]


def drawn(digit: int, rng: random.Random) -> Image:
    """Return an image of the digit with noise, drawn at a random position."""
    rows = DIGITS[digit].split()
    top, left = rng.randrange(SIDE - len(rows) + 1), rng.randrange(2, 4)
    image = [rng.gauss(0, NOISE) for _ in range(SIDE**2)]
    for y, row in enumerate(rows, top):
        for x, pixel in enumerate(row, left):
            image[y * SIDE + x] += pixel == "1"
    return image


def images(count: int, rng: random.Random) -> list[Labelled]:
    """Return `count` labelled images; the numbers of images of each digit differ by at most one."""
    return [(drawn(number % len(DIGITS), rng), number % len(DIGITS)) for number in range(count)]


def shuffled(examples: list[Labelled], rng: random.Random) -> Iterator[Labelled]:
    """Yield the examples in a random order."""
    yield from rng.sample(examples, len(examples))


def save(model: Network, path: Path) -> Path:
    """Write the model to `path` atomically, and return `path`."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(vars(model)))
    return beside.replace(path)


def train(run: Run, options: Options) -> None:
    """Train the network; report metrics every few steps, and accuracy and checkpoints after each epoch."""
    rng = random.Random(options.seed)
    training, validation = images(TRAINING_IMAGES, rng), images(VALIDATION_IMAGES, rng)
    print(f"digits: {len(training)} images to learn from, {len(validation)} to validate", flush=True)
    model = Network(options.hidden, rng)
    step, best_accuracy, recent = 0, 0.0, 0.0
    for epoch in range(1, options.epochs + 1):
        for image, label in shuffled(training, rng):
            step += 1
            loss = model.learn(image, label, options.learning_rate)
            recent = loss if step == 1 else 0.98 * recent + 0.02 * loss
            if step % METRIC_EVERY_STEPS == 0:
                run.metric(epoch=epoch, step=step, loss=recent, learning_rate=options.learning_rate)
        accuracy = sum(model.read(image) == label for image, label in validation) / len(validation)
        run.metric(epoch=epoch, step=step, loss=recent, accuracy=accuracy, learning_rate=options.learning_rate)
        run.progress(epoch=epoch)
        print(f"epoch {epoch}/{options.epochs}: loss {recent:.4f}, val_accuracy {accuracy:.4f}", flush=True)
        run.checkpoint(save(model, options.out / "last.json"), kind="last", epoch=epoch, step=step)
        if accuracy > best_accuracy:
            best_accuracy = accuracy
            run.checkpoint(save(model, options.out / "best.json"), kind="best", epoch=epoch, step=step)
    print(f"best val_accuracy {best_accuracy:.4f}; checkpoints are in {options.out}", flush=True)


def parse_options() -> Options:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=24, help="neurons of the hidden layer")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for best.json and last.json")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Run the training with a `Run` for the job in TRAINWIRE_JOB_ID."""
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    params = {name: value for name, value in vars(options).items() if name != "out"}
    with Run.from_env(name="digits", total_epochs=options.epochs, params=params) as run:
        train(run, options)


if __name__ == "__main__":
    main()
