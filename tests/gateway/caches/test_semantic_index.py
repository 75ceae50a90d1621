"""The semantic index against FAISS: the same neighbours, by independent code."""

import faiss
import numpy as np
import pytest

from gateway.caches.semantic.facets import extract
from gateway.caches.semantic.index import Index
from gateway.caches.semantic.slot import Slot

WIDTH = 384


def unit_vectors(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    normalised: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


@pytest.mark.parametrize("count", [1, 7, 8, 9, 500, 3_000])
def test_the_nearest_are_those_that_faiss_finds(count: int) -> None:
    """An independent library orders 20 queries alike, around and far beyond eight entries."""
    stored, asked = unit_vectors(count, 1), unit_vectors(20, 2)
    reference = faiss.IndexFlatIP(WIDTH)
    reference.add(stored)
    index = Index(entries_max=5_000, dimensions=WIDTH)
    slots = [Slot(facets=extract(str(number)), entry=None) for number in range(count)]
    for vector, slot in zip(stored, slots, strict=True):
        index.add(vector, slot)
    cosines, rows = reference.search(asked, min(8, count))
    for question, expected_cosines, expected_rows in zip(asked, cosines, rows, strict=True):
        found = index.nearest(question, count=8, floor=-1.0)
        assert [slots.index(slot) for _, slot in found] == expected_rows.tolist()
        np.testing.assert_allclose([cosine for cosine, _ in found], expected_cosines, atol=1e-5)
