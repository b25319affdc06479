"""Facts about NVIDIA GPUs, from NVML (nvidia-ml-py).

NVML is a native library of the driver: it can crash, and hang on a lost GPU. So it is asked in a
process of its own (``python -m agent.drivers.hardware_nvml`` prints JSON), which also keeps its
memory out of the control process.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from agent.hardware.facts import Fact

SOURCE = "nvml"
GPUS_MAX = 64
ANSWER_BYTES_MAX = 1 << 20
TIMEOUT_S = 20.0
"""The first NVML call of a cold machine loads the driver: seconds on large servers."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML tells it; None where it does not."""

    name: str
    memory_bytes: int | None
    temperature_c: int | None
    power_mw: int | None
    power_limit_mw: int | None


@dataclass(frozen=True, slots=True)
class NvmlReading:
    """What NVML said, or why it said nothing."""

    driver: str
    gpus: tuple[Gpu, ...]
    problem: str
    """Why there is no or only part of an answer; empty if all is well."""

    def facts(self) -> Iterator[Fact]:
        """The reading as facts; none if nothing answered."""
        if self.driver:
            yield Fact("gpu.driver", self.driver, SOURCE)
        if self.gpus:
            yield Fact("gpu.count", len(self.gpus), SOURCE)
            yield Fact("gpu.names", tuple(gpu.name for gpu in self.gpus), SOURCE)
            known = [gpu.memory_bytes for gpu in self.gpus if gpu.memory_bytes is not None]
            if known:
                yield Fact("gpu.memory_bytes", sum(known), SOURCE)


def read_nvml(timeout_s: float = TIMEOUT_S, python: str = sys.executable) -> NvmlReading:
    """Ask NVML in a process of its own; blocks up to ``timeout_s`` seconds, never raises."""
    try:
        done = subprocess.run(
            [python, "-m", "agent.drivers.hardware_nvml"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return NvmlReading("", (), f"NVML did not answer within {timeout_s:g} s")
    except OSError as error:
        return NvmlReading("", (), f"the NVML reader did not start: {error.strerror}")
    if done.returncode != 0:
        return NvmlReading("", (), f"the NVML reader ended with {done.returncode}")
    return decode(done.stdout)


def decode(data: bytes) -> NvmlReading:
    """The reading from the JSON of the reader process; never raises."""
    if len(data) > ANSWER_BYTES_MAX:
        return NvmlReading("", (), "the NVML reader's answer is too long")
    try:
        plain = json.loads(data)
        gpus = tuple(Gpu(**entry) for entry in plain["gpus"][:GPUS_MAX])
        return NvmlReading(str(plain["driver"]), gpus, str(plain["problem"]))
    except (ValueError, KeyError, TypeError) as error:
        return NvmlReading("", (), f"the NVML reader's answer does not decode: {error}")


def ask_nvml() -> NvmlReading:
    """Ask NVML in this process; every failure becomes ``problem``."""
    # Imported here: importing this module must cost the control process nothing.
    import pynvml  # noqa: PLC0415

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return NvmlReading("", (), f"NVML: {error}")
    gpus: list[Gpu] = []
    problem = ""
    driver = ""
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        for index in range(min(pynvml.nvmlDeviceGetCount(), GPUS_MAX)):
            try:
                gpus.append(_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)))
            except pynvml.NVMLError as error:  # a lost GPU must not hide the others
                problem = f"GPU {index}: {error}"
    except pynvml.NVMLError as error:
        problem = f"NVML: {error}"
    finally:
        pynvml.nvmlShutdown()
    return NvmlReading(driver, tuple(gpus), problem)


def _gpu(handle: object) -> Gpu:
    import pynvml  # noqa: PLC0415 - as above

    def asked(function: str, *arguments: object) -> int | None:
        try:
            return int(getattr(pynvml, function)(handle, *arguments))
        except pynvml.NVMLError:  # not every board tells everything
            return None

    try:
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:  # integrated GPUs share the system's memory and tell none
        memory = None
    return Gpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=memory,
        temperature_c=asked("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        power_mw=asked("nvmlDeviceGetPowerUsage"),
        power_limit_mw=asked("nvmlDeviceGetEnforcedPowerLimit"),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(ask_nvml())))
