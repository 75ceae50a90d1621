"""The shape of a BERT encoder, as its ``config.json`` states it.

Apart from the graph's builder, so that opening a built graph needs no onnx package.
"""

from pathlib import Path
from typing import Literal

import msgspec

from local_models.messages import InvalidModel

Precision = Literal["int8", "float32"]


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a BERT ``config.json`` that shape the graph."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    vocab_size: int
    layer_norm_eps: float
    hidden_act: Literal["gelu"]


def read_encoder_config(model_dir: Path) -> EncoderConfig:
    """Raises InvalidModel where the file is missing or describes no BERT with GELU."""
    try:
        return msgspec.json.decode((model_dir / "config.json").read_bytes(), type=EncoderConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidModel(f"{model_dir}/config.json is no BERT encoder's: {error}.") from error
