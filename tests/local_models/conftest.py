"""Fixtures that several tests of the local models share: the default model, one loaded engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_models.catalogue import ensure
from local_models.engine import Engine
from local_models.gguf import GgufFile

GENERATION_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def generation_model_dir() -> Path:
    """Folder of the default generation model, fetched once per machine."""
    return ensure(GENERATION_MODEL)


@pytest.fixture(scope="session")
def generation_gguf(generation_model_dir: Path) -> GgufFile:
    """The default generation model's open file."""
    return GgufFile(generation_model_dir / "model.gguf")


@pytest.fixture(scope="session")
def engine(generation_model_dir: Path) -> Iterator[Engine]:
    """One engine on ONNX Runtime's own operators, shared because loading takes a second."""
    loaded = Engine.load(generation_model_dir, fused=False)
    yield loaded
    loaded.close()
