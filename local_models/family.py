"""What a decoder's metadata say: its family, its dimensions, how its rows are stored.

Two families, which differ in little: a qwen2 is a llama with biases on queries, keys and values,
whose query and key rows lie in split halves. Knows metadata; does not know weights or graphs.
"""

import difflib
import math
from typing import Any

import msgspec

from local_models.gguf import GgufFile
from local_models.messages import InvalidModel

FAMILIES = ("llama", "qwen2")

COUNT_MAX = 1 << 20
"""No dimension of a model that this package can run is larger; the context may be."""


class Shape(msgspec.Struct, frozen=True):
    """A decoder's dimensions, as its GGUF metadata state them.

    half_split: whether the rows of a head's queries and keys are stored so that rotary pair i is
    rows (i, i + head_dim / 2), and not (2i, 2i + 1).
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context_tokens: int
    rope_base: float
    epsilon: float
    half_split: bool = False


def read_shape(gguf: GgufFile) -> Shape:
    """The decoder's dimensions. Raises InvalidModel for another family or missing metadata."""
    family = gguf.metadata.get("general.architecture")
    if family not in FAMILIES:
        nearest = difflib.get_close_matches(str(family), FAMILIES, n=1, cutoff=0.0)[0]
        raise InvalidModel(
            f"models of the family {str(family)[:40]!r} are not supported; the nearest family that"
            f" is, is {nearest} (of {' and '.join(FAMILIES)})"
        )
    read = _Reader(gguf.metadata, family)
    heads, width = read.count("attention.head_count"), read.count("embedding_length")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[-1] != width:
        raise InvalidModel("the model's embedding does not fit its metadata")
    kv_heads = read.count("attention.head_count_kv", default=heads)
    head_dim = read.count("attention.key_length", default=width // heads)
    if heads * head_dim != width or heads % kv_heads or head_dim % 2:
        raise InvalidModel(
            f"{heads} heads of {head_dim} ({kv_heads} for keys) do not fill a width of {width}"
        )
    read.refuse_what_is_not_built()
    return Shape(
        layers=read.count("block_count"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=read.count("feed_forward_length"),
        vocabulary=embedding.shape[0],
        context_tokens=read.count("context_length", maximum=1 << 40),
        rope_base=read.positive("rope.freq_base", default=10000.0),
        epsilon=read.positive("attention.layer_norm_rms_epsilon"),
        half_split=family == "qwen2",
    )


class _Reader:
    """Numbers of one family from the metadata, or InvalidModel with the key's name."""

    def __init__(self, metadata: dict[str, Any], family: str) -> None:
        self._metadata = metadata
        self._family = family

    def count(self, key: str, default: int | None = None, maximum: int = COUNT_MAX) -> int:
        value = self._metadata.get(f"{self._family}.{key}", default)
        if type(value) is not int or not 0 < value <= maximum:
            raise InvalidModel(
                f"the model's metadata lack a positive {self._family}.{key} of at most {maximum}"
            )
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(f"{self._family}.{key}", default)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InvalidModel(f"the model's metadata lack a positive {self._family}.{key}")
        return float(value)

    def refuse_what_is_not_built(self) -> None:
        """Models of the family that compute something else than the graph would."""
        experts = self._metadata.get(f"{self._family}.expert_count", 0)
        if experts:
            raise InvalidModel(
                f"models of {str(experts)[:40]} experts are not supported, only dense ones"
            )
        scaling = self._metadata.get(f"{self._family}.rope.scaling.type", "none")
        if scaling != "none":
            raise InvalidModel(f"rotary scaling {str(scaling)[:40]!r} is not supported")
