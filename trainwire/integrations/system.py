"""How busy the machine is, as metrics of a run: processor, memory, disk, network, NVIDIA GPUs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

from trainwire.ingest.outage import is_passing
from trainwire.ingest.process.daemon_pool import start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.run import Run
from trainwire.integrations.inside import finish_event, say_beside

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
"""Reads some values, by name; what it cannot read it leaves out, and what it did not expect it raises."""


def report_system_metrics(run: Run, interval_s: float = INTERVAL_S) -> None:
    """Report `system/...` metrics every `interval_s` seconds, from a daemon thread that ends with the run.

    Of several processes on one machine, let one call it. A forked child reports nothing.
    """
    if not 0 < interval_s <= threading.TIMEOUT_MAX:
        raise ValueError(f"interval_s={interval_s!r} is no time between two reports: say seconds, such as 15")
    # The event is taken here: should the process fork, the thread and its run stay on this side.
    report = partial(_report, run, finish_event(run), interval_s)
    try:
        start_daemon(report, THREAD_NAME)
    except RuntimeError as exc:
        logger.warning("no thread for system metrics (%s): training goes on without them", exc)


class Processor:
    """How much of the machine's processors is used, and of them by this process (one whole core is 100)."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.read()  # the first answer is no measurement: there is nothing before it to compare with

    def read(self) -> Mapping[str, float]:
        """Return the means since the last call, in percent."""
        return {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/process_cpu_percent": self._process.cpu_percent(),
        }


class Throughput:
    """Bytes a second that the machine's disks and network interfaces move."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._then, self._before = clock(), _transferred()

    def read(self) -> Mapping[str, float]:
        """Return the means since the last call; a counter that was reset in between is left out."""
        now, after = self._clock(), _transferred()
        elapsed_s = now - self._then
        moved = {name: after[name] - self._before[name] for name in after.keys() & self._before.keys()}
        self._then, self._before = now, after
        return {f"{name}_per_s": size / elapsed_s for name, size in moved.items() if size >= 0 and elapsed_s > 0}


class Gpus:
    """The machine's NVIDIA GPUs, by NVML's numbers; `nvml` is the module pynvml."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

    def read(self) -> Mapping[str, float]:
        """Return what each GPU can tell of itself; not every model can tell everything."""
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
    """Return how much memory is used on the machine, and of it by this process."""
    memory = psutil.virtual_memory()
    return {
        "system/memory_percent": memory.percent,
        "system/memory_used_bytes": memory.total - memory.available,
        "system/process_memory_bytes": psutil.Process().memory_info().rss,
    }


def read_disk() -> Mapping[str, float]:
    """Return how full the file system of the working folder is."""
    return {"system/disk_percent": psutil.disk_usage(os.getcwd()).percent}


def usable_readers(makers: Mapping[str, Callable[[], Reader]]) -> dict[str, Reader]:
    """Return the readers that can be made here, by what they read."""
    readers = {}
    for what, make in makers.items():
        try:
            readers[what] = make()
        except Exception as exc:  # noqa: BLE001 - drivers, containers without /proc: whatever it is
            logger.info("no system metrics of the %s: %s", what, exc)
    return readers


def read_all(readers: dict[str, Reader]) -> dict[str, float]:
    """Return what all readers read; one that fails is left out from then on, with one warning."""
    values: dict[str, float] = {}
    for what, read in list(readers.items()):
        try:
            values |= read()
        except Exception as exc:  # noqa: BLE001 - drivers, a deleted working folder: whatever it is
            if is_passing(exc):  # no descriptor is left: it reads again once there is one
                continue
            del readers[what]
            logger.warning("no more system metrics of the %s: %s", what, exc)
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
            say_beside(run, values)


def _gpus() -> Gpus:
    with importing():
        import pynvml  # noqa: PLC0415 - of use on machines with an NVIDIA GPU alone
    return Gpus(pynvml)


def _transferred() -> dict[str, float]:
    """Return the bytes moved since the machine's start, as far as the system counts them."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        **(
            {"system/disk_read_bytes": disk.read_bytes, "system/disk_written_bytes": disk.write_bytes}
            if disk
            else {}
        ),
        **(
            {"system/network_sent_bytes": network.bytes_sent, "system/network_received_bytes": network.bytes_recv}
            if network
            else {}
        ),
    }
