"""The default model, through ONNX Runtime, says what the NumPy decoder says."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from local_models import graph, native
from local_models.chat_template import ChatTemplate
from local_models.decoder_graph import Options
from local_models.engine import Engine
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.ops import Float, ReferenceDecoder
from local_models.session import DecoderSession
from local_models.tokenizer import Tokenizer
from tests.local_models.generating import request, run

PROMPTS = [
    "What is the capital of France?",
    "Explain photosynthesis to a child.",
    "Write a short poem about the sea.",
    "List three prime numbers and say why they are prime.",
    "How do I boil an egg?",
    "Translate 'good morning' to Spanish.",
]
TOKENS = 48

needs_native = pytest.mark.skipif(native.library_path() is None, reason="native library not built")
both_graphs = pytest.mark.parametrize(
    "fused", [False, pytest.param(True, marks=needs_native)], ids=["onnxruntime", "fused"]
)


class Answer(msgspec.Struct):
    """The reference's greedy answer. logits: float32 [len(tokens), vocabulary], before each."""

    prompt: list[int]
    tokens: list[int]
    logits: Float
    text: str


@pytest.fixture(scope="session")
def answers(generation_gguf: GgufFile) -> list[Answer]:
    """Six answers of at most 48 tokens by the NumPy decoder, which takes about 15 seconds."""
    shape = read_shape(generation_gguf)
    weights = {name: tensor.dequantized() for name, tensor in generation_gguf.tensors.items()}
    tokenizer = Tokenizer(generation_gguf.metadata)
    chat = ChatTemplate(generation_gguf.metadata, tokenizer)
    found = []
    for text in PROMPTS:
        decoder = ReferenceDecoder(
            weights,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            rope_base=shape.rope_base,
            epsilon=shape.epsilon,
        )
        prompt = chat.encode([{"role": "user", "content": text}])
        logits = [decoder.logits(prompt)[-1]]
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < TOKENS and tokens[-1] not in tokenizer.end_tokens:
            logits.append(decoder.logits(tokens[-1:])[0])
            tokens.append(int(logits[-1].argmax()))
        said = b"".join(map(tokenizer.bytes_of, tokens)).decode(errors="replace")
        found.append(Answer(prompt, tokens, np.array(logits), said))
    return found


def _teacher_forced(session: DecoderSession, answer: Answer) -> Float:
    """Logits before each of the reference's tokens, when all before it were the reference's."""
    logits = [session.prefill(0, answer.prompt, 0).copy()]
    for place, token in enumerate(answer.tokens[:-1]):
        length = len(answer.prompt) + place
        logits.append(session.decode([token], [length])[0].copy())
    return np.array(logits)


def _session(model_dir: Path, gguf: GgufFile, options: Options) -> DecoderSession:
    return DecoderSession(
        graph.ensure_graph(model_dir / "model.gguf", options),
        read_shape(gguf),
        options,
        threads=2,
        slots=1,
        library=native.library_path() if options.fused else None,
    )


@pytest.mark.slow
@both_graphs
def test_float_activations_give_the_reference_answers(
    generation_model_dir: Path, answers: list[Answer], fused: bool
) -> None:
    """288 greedy tokens at most, four requests in a batch: every one is the reference's."""
    exact = Engine.load(generation_model_dir, accuracy_level=1, fused=fused)
    try:
        requests = [request(text, text, TOKENS) for text in PROMPTS]
        outcomes = run(exact, requests)
    finally:
        exact.close()
    for text, answer in zip(PROMPTS, answers, strict=True):
        assert outcomes[text].text == answer.text
        assert outcomes[text].finished.completion_tokens == len(answer.tokens)


@pytest.mark.slow
@both_graphs
def test_float_activations_give_the_reference_logits(
    generation_model_dir: Path, generation_gguf: GgufFile, answers: list[Answer], fused: bool
) -> None:
    """Each logit is within 0.002 of the NumPy decoder's, with fused operators and without."""
    session = _session(
        generation_model_dir, generation_gguf, Options(accuracy_level=1, fused=fused)
    )
    for answer in answers[:2]:
        np.testing.assert_allclose(
            _teacher_forced(session, answer), answer.logits, rtol=0, atol=2e-3
        )


@pytest.mark.slow
@both_graphs
def test_int8_activations_choose_the_same_token_nearly_always(
    generation_model_dir: Path, generation_gguf: GgufFile, answers: list[Answer], fused: bool
) -> None:
    """At 95 % of the teacher-forced positions or more, with a mean divergence under 0.01 nats."""
    session = _session(
        generation_model_dir, generation_gguf, Options(accuracy_level=4, fused=fused)
    )
    expected = np.concatenate([answer.logits for answer in answers])
    actual = np.concatenate([_teacher_forced(session, answer) for answer in answers])
    agreement = np.mean(actual.argmax(axis=-1) == expected.argmax(axis=-1))
    surprise = _log_softmax(expected) - _log_softmax(actual)
    divergence = np.mean((np.exp(_log_softmax(expected)) * surprise).sum(axis=-1))
    print(f"fused={fused}: agreement {agreement:.4f}, divergence {divergence:.5f}, {len(actual)}")
    assert agreement >= 0.95
    assert 0 <= divergence < 0.01


def _log_softmax(logits: Float) -> Float:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Float = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
