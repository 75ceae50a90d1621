"""A decoder runs on the GPU where it can, and says in a sentence why where it cannot."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from local_models.devices import Facts, choose, this_machine, why_not_cuda
from local_models.engine import Engine
from local_models.key_values import KeyValueCache
from local_models.messages import ModelUnavailable
from local_models.server import parse_arguments

CPU = frozenset({"CPUExecutionProvider"})
BOTH = CPU | {"CUDAExecutionProvider"}
GPU_PACKAGE = frozenset({"onnxruntime-gpu"})
TWO_PACKAGES = frozenset({"onnxruntime", "onnxruntime-gpu"})


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(frozenset({"onnxruntime"}), CPU, 1), "is for CPUs: .*install onnxruntime-gpu"),
        (Facts(TWO_PACKAGES, CPU, 1), "are both installed, and the first lies over the second"),
        (Facts(GPU_PACKAGE, BOTH, None), "has no NVIDIA driver"),
        (Facts(GPU_PACKAGE, BOTH, 0), "sees no GPU"),
    ],
)
def test_what_keeps_a_model_off_the_gpu_is_one_sentence(facts: Facts, reason: str) -> None:
    """``auto`` runs on the CPU and says it; ``cuda`` is refused with it."""
    placement = choose("auto", facts)
    assert placement.device == "cpu"
    assert "\n" not in placement.reason
    with pytest.raises(ModelUnavailable, match=f"device cuda cannot be used: .*{reason}"):
        choose("cuda", facts)
    assert choose("cpu", facts).device == "cpu"


@pytest.mark.parametrize("packages", [GPU_PACKAGE, TWO_PACKAGES])
def test_a_gpu_that_can_be_used_is_used(packages: frozenset[str]) -> None:
    """Also where both packages are there and the one for GPUs lies on top."""
    facts = Facts(packages, BOTH, 1)
    assert [choose(wanted, facts).device for wanted in ("auto", "cuda")] == ["cuda", "cuda"]
    assert choose("cpu", facts).device == "cpu"


def test_this_machine_is_looked_at() -> None:
    """Whatever it has: the package that is imported here is among those found."""
    facts = this_machine()
    assert facts.packages
    assert facts.providers == frozenset(ort.get_available_providers())
    assert (choose("auto").device == "cuda") == (why_not_cuda(facts) == "")


def test_a_loaded_model_says_where_it_runs(generation_model_dir: Path) -> None:
    """An operator reads "cpu" or "cuda", and the reason whenever the GPU is not used."""
    for device in ("auto", "cpu"):
        engine = Engine.load(
            generation_model_dir, slots=1, context_tokens=256, device=device, fused=False
        )  # fmt: skip
        engine.close()
        assert engine.info.device in (("cpu",) if device == "cpu" else ("cpu", "cuda"))
        assert bool(engine.info.device_reason) == (engine.info.device == "cpu")


def test_the_model_process_takes_a_device() -> None:
    """The default is "auto", and a device that does not exist ends the start."""
    arguments = ["--socket", "/x"]
    assert parse_arguments(arguments).device == "auto"
    assert parse_arguments([*arguments, "--device", "cuda"]).device == "cuda"
    with pytest.raises(SystemExit):
        parse_arguments([*arguments, "--device", "tpu"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_slot_is_copied_where_it_is(dtype: type[np.generic]) -> None:
    """By a graph of one node, as on a GPU: only the target changes, and nothing travels."""
    cache = KeyValueCache(["a", "b"], (3, 2, 5, 4), dtype, "cpu", copies_by_graph=True)
    arrays = cache.arrays
    for number, array in enumerate(arrays.values()):
        array[...] = np.arange(array.size).reshape(array.shape) + number
    before = {name: array.copy() for name, array in arrays.items()}
    cache.move(2, 0, 3)
    for name, array in arrays.items():
        assert np.array_equal(array[0], before[name][2])
        assert np.array_equal(array[1:], before[name][1:])
