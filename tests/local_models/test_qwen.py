"""Qwen2.5-Coder, from the publisher's file: the tokens of llama.cpp, and what it may take."""

import numpy as np
import pytest

from local_models import graph, native
from local_models.chat_template import ChatTemplate
from local_models.decoder_graph import Options
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.session import DecoderSession
from local_models.tokenizer import Tokenizer
from tests.local_models.qwen import qwen_model_dir

# Questions, and the first tokens of llama.cpp's greedy answers on the 0.5B file (llama-cpp-python
# 0.3.36, two threads, Qwen's default system prompt).
ANSWERS: list[tuple[str, list[int]]] = [
    ("What is the capital of France?", [785, 6722, 315, 9625, 374, 12095, 13, 151645]),
    (
        "Write a Python function that reverses a string.",
        [8420, 594, 264, 13027, 729, 429, 17431, 288],
    ),
    ("Compute 17+25.", [16, 22, 488, 220, 17, 20, 16819, 220]),
    ("Translate 'good morning' to Spanish.", [15216, 6556, 151645]),
    ("List three prime numbers.", [19641, 10250, 5109, 525, 220, 17, 11, 220]),
    ("What is the opposite of hot?", [785, 14002, 315, 4017, 374, 9255, 13, 151645]),
    (
        "Extract the e-mail address: Contact Ann at ann@example.org for details.",
        [27093, 35487, 2659, 151645],
    ),
    (
        "Is the sentiment positive or negative? 'I love this phone.'",
        [785, 25975, 315, 279, 17133, 330, 40, 2948],
    ),
    (
        "Write a SQL query that counts rows in table users.",
        [1249, 1760, 279, 1372, 315, 6978, 304, 264],
    ),
    ("Explain photosynthesis in one sentence.", [31772, 73667, 374, 279, 1882, 553, 892, 10779]),
    ("Which is larger, 0.9 or 0.11?", [1249, 8253, 892, 374, 8131, 11, 220, 15]),
    ("Sort these numbers: 5, 3, 9, 1.", [1249, 3378, 279, 5109, 220, 20, 11, 220]),
    ("Give JSON with keys name and age for Bob, 42.", [73594, 2236, 198, 515, 220, 330, 606, 788]),
    ("What is the chemical symbol of gold?", [785, 11483, 7735, 315, 6623, 374, 330, 65332]),
    ("Write a haiku about the sea.", [1639, 68835, 315, 279, 9396, 345, 1639, 68835]),
    ("Correct the spelling: 'recieve'.", [785, 4396, 42429, 315, 364, 2758, 19155, 6]),
    ("How many days are there in a leap year?", [32, 31471, 1042, 374, 264, 1042, 429, 374]),
    ("Convert 10 km to miles.", [1249, 5508, 220, 16, 15, 40568, 311, 8756]),
    ("Write HELLO in lower case.", [14990, 151645]),
    ("Name the author of Hamlet.", [785, 3150, 315, 9582, 1149, 374, 12375, 41382]),
    ("What does HTTP stand for?", [9230, 13352, 369, 38415, 37220, 23200, 24572, 13]),
]


@pytest.mark.long
@pytest.mark.parametrize("fused", [False, True], ids=["onnxruntime", "fused"])
def test_qwen_chooses_llama_cpps_tokens_nearly_always(fused: bool) -> None:
    """After the same tokens, at 90 % of the places or more: both round activations, differently."""
    library = native.library_path()
    if fused and library is None:
        pytest.skip("the native library is not built")
    path = qwen_model_dir("0.5b") / "model.gguf"
    gguf = GgufFile(path)
    chat = ChatTemplate(gguf.metadata, Tokenizer(gguf.metadata))
    options = Options(fused=fused, context_tokens=256)
    session = DecoderSession(
        graph.ensure_graph(path, options),
        read_shape(gguf),
        options,
        threads=2,
        slots=1,
        library=library if fused else None,
    )
    same = []
    for question, tokens in ANSWERS:
        prompt = chat.encode([{"role": "user", "content": question}])
        logits = session.prefill(0, prompt, 0)
        for place, token in enumerate(tokens):
            same.append(int(logits.argmax()) == token)
            logits = session.decode([token], [len(prompt) + place])[0]
    share = float(np.mean(same))
    print(f"fused={fused}: {share:.3f} of {len(same)} tokens are llama.cpp's")
    assert len(ANSWERS) >= 20
    assert share >= 0.9
