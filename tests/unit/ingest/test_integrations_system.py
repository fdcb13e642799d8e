"""System metrics: the values, and a thread that does not disturb the training."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import pynvml
import pytest

from tests.processes import wait_until
from trainwire.integrations.system import (
    THREAD_NAME,
    Gpus,
    Processor,
    Throughput,
    read_all,
    read_disk,
    read_memory,
    report_system_metrics,
    usable_readers,
)
from trainwire.testing import RecordedRun


def reporting_threads() -> list[threading.Thread]:
    """Return the threads that report system metrics now."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_metrics_are_reported_until_the_run_ends() -> None:
    """Points come while the run lives; its end ends the thread, and its receipt misses nothing."""
    run = RecordedRun()
    report_system_metrics(run, interval_s=0.02)
    wait_until(lambda: len(run.points) >= 3, "three reports")
    run.metric(loss=0.5)
    assert run.finish().complete
    wait_until(lambda: not reporting_threads(), "the thread's end")
    assert {"system/cpu_percent", "system/memory_percent", "system/disk_percent"} <= set(run.names)
    assert run.assert_completed().final_metrics == {"loss": 0.5}


def test_no_report_before_the_interval_is_over() -> None:
    """The first report comes after one interval, which the end of the run cuts short."""
    run = RecordedRun()
    report_system_metrics(run, interval_s=3600)
    run.finish()
    wait_until(lambda: not reporting_threads(), "the thread's end")
    assert run.points == []


@pytest.mark.filterwarnings("ignore:.*fork")  # newer Pythons advise against it with threads
def test_a_forked_child_reports_nothing() -> None:
    """The thread is the parent's alone."""
    run = RecordedRun()
    report_system_metrics(run, interval_s=0.01)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        time.sleep(0.1)
        os.write(writing, f"{len(run.points)} points, {len(reporting_threads())} threads".encode())
        os._exit(0)
    os.waitpid(child, 0)
    run.finish()
    assert os.read(reading, 100) == b"0 points, 0 threads"


@pytest.mark.parametrize("interval_s", [0, -1, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_named(interval_s: float) -> None:
    """It is rejected at once, with the remedy."""
    with pytest.raises(ValueError, match=r"interval_s=\S+ is no interval between two reports: give seconds"):
        report_system_metrics(RecordedRun(), interval_s)


def test_a_system_without_threads_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on without system metrics."""

    def refuse(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    report_system_metrics(RecordedRun())
    assert "training goes on without them" in caplog.text


def test_the_machine_is_read() -> None:
    """Percentages are percentages, a busy process has used its processor, and memory is in bytes."""
    processor = Processor()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    used = processor.read()
    assert 0 <= used["system/cpu_percent"] <= 100
    assert used["system/process_cpu_percent"] > 10
    memory = read_memory()
    assert 0 < memory["system/memory_percent"] < 100
    assert 2**20 < memory["system/process_memory_bytes"] < memory["system/memory_used_bytes"]
    assert 0 <= read_disk()["system/disk_percent"] <= 100


def counters(moved: int) -> SimpleNamespace:
    """Return counters as psutil's, all of them at `moved`."""
    return SimpleNamespace(read_bytes=moved, write_bytes=moved, bytes_sent=moved, bytes_recv=moved)


def test_throughput_is_bytes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference is divided by the time; counters that begin anew, or are not there, are left out."""
    seen: dict[str, Any] = {"disk": counters(1000), "net": counters(500)}
    monkeypatch.setattr("psutil.disk_io_counters", lambda: seen["disk"])
    monkeypatch.setattr("psutil.net_io_counters", lambda: seen["net"])
    now = iter([0.0, 10.0, 20.0, 30.0])
    throughput = Throughput(lambda: next(now))
    seen |= {"disk": counters(6000), "net": counters(700)}
    assert throughput.read() == {
        "system/disk_read_bytes_per_s": 500.0,
        "system/disk_written_bytes_per_s": 500.0,
        "system/network_sent_bytes_per_s": 20.0,
        "system/network_received_bytes_per_s": 20.0,
    }
    seen |= {"disk": None, "net": counters(0)}
    assert throughput.read() == {}
    seen["net"] = counters(10)
    assert set(throughput.read()) == {"system/network_sent_bytes_per_s", "system/network_received_bytes_per_s"}


class Nvml:
    """A twin of pynvml on a machine with two GPUs, of which the second does not report its power."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def nvmlInit(self) -> None:  # noqa: N802
        """Find the driver."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Return how many GPUs there are."""
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        """Return a GPU."""
        return index

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> SimpleNamespace:  # noqa: N802
        """Return the load."""
        return SimpleNamespace(gpu=90 - gpu)

    def nvmlDeviceGetMemoryInfo(self, _gpu: int) -> SimpleNamespace:  # noqa: N802
        """Return the memory."""
        return SimpleNamespace(used=4 * 2**30, total=16 * 2**30)

    def nvmlDeviceGetTemperature(self, _gpu: int, _kind: int) -> int:  # noqa: N802
        """Return degrees."""
        return 60

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:  # noqa: N802
        """Return milliwatts."""
        if gpu == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 250_500


def test_gpus_are_read() -> None:
    """Load, memory, temperature and power of each GPU are reported; unsupported values are left out."""
    values = Gpus(Nvml()).read()
    assert values == {
        "system/gpu0_percent": 90,
        "system/gpu0_memory_percent": 25.0,
        "system/gpu0_memory_used_bytes": 4 * 2**30,
        "system/gpu0_temperature_celsius": 60,
        "system/gpu0_power_watts": 250.5,
        "system/gpu1_percent": 89,
        "system/gpu1_memory_percent": 25.0,
        "system/gpu1_memory_used_bytes": 4 * 2**30,
        "system/gpu1_temperature_celsius": 60,
    }


def test_the_stand_in_speaks_as_nvml_does() -> None:
    """Every function that the stand-in has is one of the real package."""
    assert all(callable(getattr(pynvml, name)) for name in vars(Nvml) if name.startswith("nvml"))


def failing() -> NoReturn:
    """Fail as a driver does that was unloaded."""
    raise OSError("driver gone")


def test_a_reader_that_cannot_be_made_is_left_out() -> None:
    """A machine without NVIDIA's driver has the other metrics."""
    made: dict[str, Callable[[], Callable[[], Mapping[str, float]]]] = {
        "GPUs": failing,
        "memory": lambda: read_memory,
    }
    assert usable_readers(made) == {"memory": read_memory}


def test_a_reader_that_fails_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The others go on."""
    readers: dict[str, Callable[[], Mapping[str, float]]] = {"GPUs": failing, "disk": lambda: {"a": 1.0}}
    with caplog.at_level(logging.WARNING):
        assert read_all(readers) == read_all(readers) == {"a": 1.0}
    assert [record.getMessage() for record in caplog.records] == [
        "no more system metrics of the GPUs: driver gone"
    ]
