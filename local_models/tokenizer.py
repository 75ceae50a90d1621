"""From text to tokens and back, by the vocabulary that a GGUF file carries.

Text never becomes a mark: a user who types ``<|im_end|>`` has typed ten characters. Marks are the
control tokens, and defined ones that look like one, such as ``<tool_call>``.
Bytes that the vocabulary has no token for are dropped, as its authors' own tokenizer does.
Knows byte-level BPE; does not know chats.
"""

import codecs
import re
from typing import Any

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from local_models.messages import InvalidModel

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text into words. Source: the tokenizer.json of its authors."""

_CONTROL, _USER_DEFINED = 3, 4
_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
MARKS_SQUARES_MAX = 1 << 21
"""Characters of each control token's name, squared, in all: 2,048 names of 32 characters."""

_END_NAMES = ("<|im_end|>", "<|endoftext|>")


class Tokenizer:
    """One model's vocabulary. end_tokens: those after which a model has nothing more to say."""

    end_tokens: frozenset[int]
    first_token: int | None
    """What every prompt begins with, where the model wants that."""
    marks: dict[str, int]
    """Tokens that only a chat template may write, by their names."""
    token_bytes_max: int
    """Bytes of the longest token: no text of n bytes has fewer than n / this tokens."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        if metadata.get("tokenizer.ggml.model") != "gpt2":
            raise InvalidModel("only byte-level BPE vocabularies are supported")
        pieces = _strings(metadata, "tokenizer.ggml.tokens")
        kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(pieces)
        merges = [merge.split(" ") for merge in _strings(metadata, "tokenizer.ggml.merges")]
        if (
            not isinstance(kinds, list)
            or len(kinds) != len(pieces)
            or any(len(merge) != 2 for merge in merges)
        ):
            raise InvalidModel("the vocabulary's lists do not fit together")
        self._ids = {piece: token for token, piece in enumerate(pieces)}
        self._controls = {token for token, kind in enumerate(kinds) if kind == _CONTROL}
        self._bytes = [
            b"" if kind == _CONTROL else _bytes(piece, verbatim=kind == _USER_DEFINED)
            for piece, kind in zip(pieces, kinds, strict=True)
        ]
        self.marks = {
            piece: token
            for token, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
            if piece and (kind == _CONTROL or (kind == _USER_DEFINED and _MARK.fullmatch(piece)))
        }
        # Every part of a mark is kept, to break it wherever a text holds it.
        if sum(len(mark) ** 2 for mark in self.marks) > MARKS_SQUARES_MAX:
            raise InvalidModel("the vocabulary's control tokens are too many, or too long")
        self.token_bytes_max = max(map(len, self._bytes), default=0)
        self._pieces = pieces
        self._bpe = self._build(merges, kinds, metadata.get("tokenizer.ggml.pre"))
        ends = {self._ids[name] for name in _END_NAMES if name in self._ids}
        end = self._token(metadata, "eos", 0)
        self.end_tokens = frozenset({*ends, end})
        wants_first = metadata.get("tokenizer.ggml.add_bos_token", False)
        self.first_token = self._token(metadata, "bos", None) if wants_first else None

    def _token(self, metadata: dict[str, Any], name: str, default: int | None) -> Any:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        if type(token) is not int or not 0 <= token < len(self._pieces):
            raise InvalidModel(f"the vocabulary has no token {name}_token_id {str(token)[:40]}")
        return token

    def _build(self, merges: list[list[str]], kinds: list[int], split: Any) -> BpeTokenizer:
        try:
            model = BPE(vocab=self._ids, merges=[(left, right) for left, right in merges])
        except Exception as error:  # tokenizers raises Exception itself, with a message.
            reason = str(error)[:200]
            raise InvalidModel(f"the vocabulary's merges cannot be used: {reason}") from error
        bpe = BpeTokenizer(model)
        bpe.pre_tokenizer = pre_tokenizer(split)
        defined = [
            AddedToken(self._pieces[token], normalized=False)
            for token, kind in enumerate(kinds)
            if kind == _USER_DEFINED and self._pieces[token] not in self.marks
        ]
        bpe.add_tokens(defined)
        return bpe

    def __len__(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; none of them is a control token."""
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def control(self, name: str) -> int:
        """The control token with this name. Raises InvalidModel when there is none."""
        token = self._ids.get(name, -1)
        if token not in self._controls:
            raise InvalidModel(f"the vocabulary has no control token {name}")
        return token

    def piece(self, token: Any) -> str:
        """A token as the vocabulary writes it; nothing where there is no such token."""
        known = isinstance(token, int) and 0 <= token < len(self._pieces)
        return self._pieces[token] if known else ""

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text; nothing for a control token."""
        return self._bytes[token]


class Detokenizer:
    """Text of a growing sequence. Bytes of a character wait until the character is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this token completes, often but not always its own."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def flush(self) -> str:
        """What is left at the end: a broken character's replacement, or nothing."""
        return self._decoder.decode(b"", final=True)


def pre_tokenizer(name: Any) -> PreTokenizer:
    """How the vocabulary of this name (``tokenizer.ggml.pre``) cuts text before its merges.

    Qwen2's authors also compose accents (NFC) first; files do not say so, llama.cpp does not do
    it either, and text then comes back as it was.
    """
    words = ByteLevel(add_prefix_space=False, use_regex=True)
    match name:
        case "smollm":
            return Sequence([Digits(individual_digits=True), words])
        case "qwen2":
            bytes_alone = ByteLevel(add_prefix_space=False, use_regex=False)
            return Sequence([Split(Regex(_QWEN2_WORDS), behavior="isolated"), bytes_alone])
        case "gpt-2" | "default" | None:
            return words
        case _:
            raise InvalidModel(
                f"the vocabulary splits text in the manner {str(name)[:40]!r}: not supported"
            )


def _strings(metadata: dict[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    if not isinstance(found, list) or not all(isinstance(piece, str) for piece in found):
        raise InvalidModel(f"the model's metadata lack the list {key}")
    return found


def _byte_characters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character. Source: OpenAI's GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTES = _byte_characters()


def _bytes(piece: str, *, verbatim: bool) -> bytes:
    if verbatim or any(character not in _BYTES for character in piece):
        return piece.encode()
    return bytes(_BYTES[character] for character in piece)
