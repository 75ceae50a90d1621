"""Vectors of the model process: out of its frames, and into OpenAI's answer.

The one module of the way to the model process that needs NumPy. A gateway without local models is
spared NumPy's 25 MB, so this is imported where a model process is connected, and nowhere else.
"""

import base64

import numpy as np
import numpy.typing as npt
import orjson

from gateway.upstreams.local_openai import EmbeddingsCall
from local_models import protocol

Vectors = npt.NDArray[np.float32]


def vectors_of(answer: protocol.Vectors) -> Vectors:
    """Unit vectors, float32 [texts, dimensions]."""
    return np.frombuffer(answer.values, "<f4").reshape(-1, answer.dimensions)


def embeddings_document(call: EmbeddingsCall, vectors: Vectors, prompt_tokens: int) -> bytes:
    """The answer. vectors: float32 [texts, width], shortened and renormalised where asked for."""
    if call.dimensions < vectors.shape[1]:
        vectors = vectors[:, : call.dimensions]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, np.float32(1e-12))
    # The provider's numbers are the shortest decimals of float32: orjson writes them so.
    rows = np.ascontiguousarray(vectors, "<f4")
    answer = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode() if call.base64 else row,
            }
            for index, row in enumerate(rows)
        ],
        "model": call.model,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens,
        },
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
