"""Reports the load of the machine as metrics: processor, memory, disk, network and NVIDIA GPUs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

from trainwire.ingest.process.daemon_pool import start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.run import Run
from trainwire.ingest.servers.outage import is_passing
from trainwire.integrations.reporting import finish_event, report_aside

try:
    import psutil
except ImportError as exc:
    raise ImportError(
        f"trainwire.integrations.system needs psutil, and `import psutil` fails ({exc}): "
        "pip install 'trainwire[system]'"
    ) from exc

logger = logging.getLogger("trainwire.integrations")

INTERVAL_S: Final = 15.0
THREAD_NAME: Final = "trainwire-system"

Reader: TypeAlias = Callable[[], Mapping[str, float]]
"""Returns values by metric name. Values that cannot be read are left out; unexpected errors are raised."""


def report_system_metrics(run: Run, interval_s: float = INTERVAL_S) -> None:
    """Report `system/...` metrics every `interval_s` seconds, from a daemon thread that ends with the run.

    Call it in only one of several processes on a machine. A forked child reports nothing. Raises `ValueError` if
    the interval is invalid.
    """
    if not 0 < interval_s <= threading.TIMEOUT_MAX:
        raise ValueError(f"interval_s={interval_s!r} is no interval between two reports: give seconds, such as 15")
    # Taken here: a forked child has another event, and no thread.
    report = partial(_report, run, finish_event(run), interval_s)
    try:
        start_daemon(report, THREAD_NAME)
    except RuntimeError as exc:
        logger.warning("no thread for system metrics (%s): training goes on without them", exc)


class Processor:
    """Reads the processor load of the machine, and of this process (100 is one core, fully used)."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.read()  # the first values mean nothing: they need an earlier call to compare with

    def read(self) -> Mapping[str, float]:
        """Return the mean loads since the last call, in percent."""
        return {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/process_cpu_percent": self._process.cpu_percent(),
        }


class Throughput:
    """Measures the bytes per second of the machine's disks and network interfaces."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._then, self._before = clock(), _transferred()

    def read(self) -> Mapping[str, float]:
        """Return the mean rates since the last call; counters that were reset in between are omitted."""
        now, after = self._clock(), _transferred()
        elapsed_s = now - self._then
        moved = {name: after[name] - self._before[name] for name in after.keys() & self._before.keys()}
        self._then, self._before = now, after
        return {f"{name}_per_s": size / elapsed_s for name, size in moved.items() if size >= 0 and elapsed_s > 0}


class Gpus:
    """Reads the load of the machine's NVIDIA GPUs, numbered as in NVML; `nvml` is the module `pynvml`."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

    def read(self) -> Mapping[str, float]:
        """Return the measured values of each GPU; values that a GPU model does not support are omitted."""
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for part in (self._load, self._memory, self._temperature, self._power):
                with suppress(self._nvml.NVMLError):
                    values |= {f"system/gpu{index}_{name}": value for name, value in part(handle).items()}
        return values

    def _load(self, handle: Any) -> dict[str, float]:
        return {"percent": self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu}

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"memory_percent": 100 * memory.used / memory.total, "memory_used_bytes": memory.used}

    def _temperature(self, handle: Any) -> dict[str, float]:
        kind = self._nvml.NVML_TEMPERATURE_GPU
        return {"temperature_celsius": self._nvml.nvmlDeviceGetTemperature(handle, kind)}

    def _power(self, handle: Any) -> dict[str, float]:
        return {"power_watts": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000}


def read_memory() -> Mapping[str, float]:
    """Return the memory in use on the machine and by this process."""
    memory = psutil.virtual_memory()
    return {
        "system/memory_percent": memory.percent,
        "system/memory_used_bytes": memory.total - memory.available,
        "system/process_memory_bytes": psutil.Process().memory_info().rss,
    }


def read_disk() -> Mapping[str, float]:
    """Return the used share of the working folder's file system, in percent."""
    return {"system/disk_percent": psutil.disk_usage(os.getcwd()).percent}


def usable_readers(makers: Mapping[str, Callable[[], Reader]]) -> dict[str, Reader]:
    """Return the readers that can be created on this machine, by subject (`processor`, `GPUs` ...)."""
    readers = {}
    for subject, make in makers.items():
        try:
            readers[subject] = make()
        except Exception as exc:  # noqa: BLE001 - drivers, containers without /proc
            logger.info("no system metrics of the %s: %s", subject, exc)
    return readers


def read_all(readers: dict[str, Reader]) -> dict[str, float]:
    """Return the values of all readers; remove a reader that fails, with a warning."""
    values: dict[str, float] = {}
    for subject, read in list(readers.items()):
        try:
            values |= read()
        except Exception as exc:  # noqa: BLE001 - drivers, a deleted working folder
            if is_passing(exc):  # no file descriptor is left now
                continue
            del readers[subject]
            logger.warning("no more system metrics of the %s: %s", subject, exc)
    return values


def _report(run: Run, finished: threading.Event, interval_s: float) -> None:
    readers = usable_readers(
        {
            "processor": lambda: Processor().read,
            "memory": lambda: read_memory,
            "disk": lambda: read_disk,
            "disks and network": lambda: Throughput().read,
            "GPUs": lambda: _gpus().read,
        }
    )
    while not finished.wait(interval_s):
        values = read_all(readers)
        if values and not finished.is_set():
            report_aside(run, values)


def _gpus() -> Gpus:
    with importing():
        import pynvml  # noqa: PLC0415 - only needed with an NVIDIA GPU
    return Gpus(pynvml)


def _transferred() -> dict[str, float]:
    """Return the bytes transferred since the machine was started, by counter.

    Counters that the system lacks are left out.
    """
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    counters: dict[str, float] = {}
    if disk:
        counters["system/disk_read_bytes"] = disk.read_bytes
        counters["system/disk_written_bytes"] = disk.write_bytes
    if network:
        counters["system/network_sent_bytes"] = network.bytes_sent
        counters["system/network_received_bytes"] = network.bytes_recv
    return counters
