"""On which device a decoder runs, and in one sentence why not on another.

Knows ONNX Runtime's packages and NVIDIA's driver; does not know models.
"""

import ctypes
import importlib.metadata
from typing import Literal

import msgspec
import onnxruntime

from local_models.messages import Device, ModelUnavailable

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


class Facts(msgspec.Struct, frozen=True):
    """What decides. packages: of ``onnxruntime`` and ``onnxruntime-gpu``, the installed ones.

    providers: ONNX Runtime's, as it names them. driver_devices: GPUs that NVIDIA's driver sees,
    None where there is no driver.
    """

    packages: frozenset[str]
    providers: frozenset[str]
    driver_devices: int | None


class Placement(msgspec.Struct, frozen=True):
    """The device a model runs on; reason: why it is not the GPU, empty where it is."""

    device: Literal["cpu", "cuda"]
    reason: str = ""


def choose(wanted: Device, facts: Facts | None = None) -> Placement:
    """The device for what is wanted; ``auto`` takes CUDA where it can be used.

    facts: None looks at this machine. Raises ModelUnavailable where ``cuda`` cannot be had.
    """
    if wanted == "cpu":
        return Placement("cpu", "the CPU was asked for")
    reason = why_not_cuda(facts or this_machine())
    if not reason:
        return Placement("cuda")
    if wanted == "cuda":
        raise ModelUnavailable(f"device cuda cannot be used: {reason}")
    return Placement("cpu", reason)


def why_not_cuda(facts: Facts) -> str:
    """One sentence, or nothing where CUDA can be used."""
    if "CUDAExecutionProvider" not in facts.providers:
        if len(facts.packages) == 2:
            return (
                "onnxruntime and onnxruntime-gpu are both installed, and the first lies over the"
                " second: `pip uninstall onnxruntime onnxruntime-gpu`, then `pip install"
                " onnxruntime-gpu`"
            )
        return (
            "the installed onnxruntime is for CPUs: `pip uninstall onnxruntime`, then"
            " `pip install onnxruntime-gpu`"
        )
    if facts.driver_devices is None:
        return "this machine has no NVIDIA driver (libcuda.so.1 cannot be opened)"
    if facts.driver_devices == 0:
        return "NVIDIA's driver sees no GPU here"
    return ""


def this_machine() -> Facts:
    """The facts of the process's own environment."""
    installed = {each for each in _PACKAGES if _is_installed(each)}
    return Facts(
        frozenset(installed),
        frozenset(onnxruntime.get_available_providers()),
        _driver_devices(),
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _driver_devices() -> int | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return None
    return count.value
