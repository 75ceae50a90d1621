"""The files of the Qwen models, for the tests that are marked ``long``."""

from pathlib import Path

import pytest

from local_models.catalogue import ensure
from local_models.messages import ModelUnavailable


def qwen_model_dir(size: str) -> Path:
    """Folder of Qwen2.5-Coder-Instruct, "0.5b" or "1.5b"; skips where it cannot be had."""
    try:
        return ensure(f"qwen2.5-coder-{size}-instruct")
    except ModelUnavailable as error:
        pytest.skip(str(error))
