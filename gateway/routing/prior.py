"""The weights a router starts from, as they lie in the package, and how they are read.

Knows one JSON file. It is written by ``train.py``; what it was trained on is named inside it.
"""

import base64
import zlib
from importlib import resources

import msgspec

from gateway.routing.features import NAMES
from gateway.routing.thresholds import CalibrationTable

VOCABULARY_BITS = 1 << 17
SHIPPED = "prior.json"
REMEMBERED_WORDS_MAX = 10_000
REMEMBERED_CHARACTERS_MAX = 24


# A feature beyond four standard deviations says no more than one at four.
CLIP = 4.0


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """One calibrated probability: sigmoid(weights · clip((x - mean) / scale) + intercept)."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float


class _SeenWords(dict[str, int]):
    """Whether a word was met, 1 or 0, remembered: a prompt's words are mostly yesterday's.

    Bounded in words and in their length, some 1 MB when full; what came first stays.
    """

    def __init__(self, bits: bytes) -> None:
        super().__init__()
        self._bits = bits

    def __missing__(self, word: str) -> int:
        bucket = zlib.crc32(word.encode()) % VOCABULARY_BITS
        met = self._bits[bucket >> 3] >> (bucket & 7) & 1
        if len(self) < REMEMBERED_WORDS_MAX and len(word) <= REMEMBERED_CHARACTERS_MAX:
            self[word] = met
        return met


class Vocabulary:
    """Which words the prior has met, as one bit per hash; 2**17 bits, some 5 % false matches."""

    def __init__(self, bits: bytes) -> None:
        self._bits = bits
        self._met = _SeenWords(bits)

    @classmethod
    def of(cls, words: list[str]) -> "Vocabulary":
        """The vocabulary that knows exactly these words, and their hash neighbours."""
        bits = bytearray(VOCABULARY_BITS // 8)
        for word in words:
            bucket = zlib.crc32(word.encode()) % VOCABULARY_BITS
            bits[bucket >> 3] |= 1 << (bucket & 7)
        return cls(bytes(bits))

    def known_share(self, words: list[str]) -> float:
        """Share of words met before; 0 for no words."""
        return sum(map(self._met.__getitem__, words)) / (len(words) or 1)

    def encoded(self) -> str:
        """Compressed and in base64, for JSON."""
        return base64.b64encode(zlib.compress(self._bits, 9)).decode()

    @classmethod
    def decoded(cls, text: str) -> "Vocabulary":
        """The inverse of ``encoded``."""
        return cls(zlib.decompress(base64.b64decode(text)))


class Prior(msgspec.Struct, frozen=True, kw_only=True):
    """Two heads for a reference pair of models, and the step down to the small model we ship.

    ``small_offset`` is subtracted from the small head's logit: the heads were fitted on a small
    model of the 8x7B class, the default one is far weaker. ``table`` is that of the default pair.
    """

    feature_names: tuple[str, ...]
    small: Head
    large: Head
    small_offset: float
    table: CalibrationTable
    vocabulary: str
    trained_on: tuple[str, ...]

    def check(self) -> None:
        """Raise ``ValueError`` when the file belongs to other code than this."""
        if self.feature_names != NAMES:
            raise ValueError("the prior was trained on other features; run gateway.routing.train")
        if len(self.small.weights) != len(NAMES) or len(self.large.weights) != len(NAMES):
            raise ValueError("the prior's heads and features differ in number")
        if (self.small.mean, self.small.scale) != (self.large.mean, self.large.scale):
            raise ValueError("the prior's heads see the features on different scales")
        if not self.table.rows:
            raise ValueError("the prior has no calibration table")


def load_shipped() -> Prior:
    """The prior in the package. Raises ``ValueError`` when it does not fit this code."""
    document = resources.files("gateway.routing").joinpath(SHIPPED).read_bytes()
    prior = msgspec.json.decode(document, type=Prior)
    prior.check()
    return prior
