"""Numbers that are made: range, order, and the probability that two are equal."""

from __future__ import annotations

import math
import os

from hypothesis import given
from hypothesis import strategies as st

from trainwire.ingest.identity.job_numbers import (
    EPOCH_S,
    LAST_SLOT,
    RANDOM_BITS,
    SLOT_S,
    NumberMaker,
    number_of,
)
from trainwire.schemas.wire.validation import LEAST_MADE_ID, MAX_ID

STARTS = 10_000


def test_ten_thousand_starts_in_one_second_hardly_ever_collide() -> None:
    """By arithmetic: of 10,000 numbers of one slot two are equal with less than one in a million."""
    pairs = STARTS * (STARTS - 1) / 2
    assert pairs / 2**RANDOM_BITS < 1e-6


def test_ten_thousand_processes_make_numbers_of_their_own() -> None:
    """Simulated: makers that know nothing of one another, at the same moment, make different numbers."""
    now = EPOCH_S + 28_900_000.5
    numbers = [NumberMaker(lambda: now).make() for _ in range(STARTS)]
    assert len(set(numbers)) == STARTS
    assert min(numbers) >= LEAST_MADE_ID
    # Random in all of its bits: each is set in about half of the numbers.
    counts = [sum(number >> bit & 1 for number in numbers) for bit in range(RANDOM_BITS)]
    assert all(abs(count - STARTS / 2) < 6 * math.sqrt(STARTS) / 2 for count in counts)


@given(st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=1, max_size=30))
def test_numbers_are_positive_bigints(times: list[float]) -> None:
    """Whatever the clock shows, a number is one that Postgres can store, and none that a person would choose."""
    moments = iter(times)
    maker = NumberMaker(lambda: next(moments))
    assert all(LEAST_MADE_ID <= maker.make() <= MAX_ID for _ in times)


@given(st.floats(EPOCH_S + SLOT_S, EPOCH_S + LAST_SLOT * SLOT_S), st.floats(SLOT_S, 1e9))
def test_numbers_are_in_the_order_of_time(before_s: float, later_s: float) -> None:
    """A number made a slot or more after another, on any machine, is larger."""
    after_s = min(before_s + later_s, EPOCH_S + (LAST_SLOT + 1) * SLOT_S - 1)
    first, second = NumberMaker(lambda: before_s).make(), NumberMaker(lambda: after_s).make()
    assert first < second or after_s - before_s < SLOT_S


def test_numbers_of_one_process_ascend() -> None:
    """Runs of a loop are in their order, however short they are, also where the clock is set back."""
    moments = iter([EPOCH_S + 1e7 - second for second in range(1000)])
    maker = NumberMaker(lambda: next(moments))
    numbers = [maker.make() for _ in range(1000)]
    assert numbers == sorted(set(numbers))


def test_forked_children_have_random_bits_of_their_own() -> None:
    """Children that fork from one process make different numbers, and none that the parent makes next."""
    maker = NumberMaker()
    maker.make()
    reader, writer = os.pipe()
    children = []
    for _ in range(20):
        if not (child := os.fork()):
            os.write(writer, maker.make().to_bytes(8))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    made = os.read(reader, 160)
    os.close(reader)
    os.close(writer)
    numbers = [int.from_bytes(made[start : start + 8]) for start in range(0, 160, 8)]
    distances = [abs(one - other) for one in [*numbers, maker.make()] for other in numbers if one != other]
    assert len(set(numbers)) == 20
    assert max(distances) > 2**40  # not a few steps from the parent's


@given(st.text())
def test_an_identity_has_one_number(identity: str) -> None:
    """Processes that compute the number of the same launch agree on it, whatever text identifies that."""
    assert number_of(identity) == number_of(identity) != number_of(identity + "'")
    assert LEAST_MADE_ID <= number_of(identity) <= MAX_ID
