"""How often the nonsense detector is wrong on real texts, cut as answers are.

    python -m tests.bench.bench_nonsense [--pieces 400] FOLDER...

Each folder is searched for code, prose, tables and data; a piece of 6,000 characters of each file
is read as the answer to "Write it, please.". Prints what was noticed, by kind of file.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

from local_models.catalogue import ensure
from local_models.gguf import GgufFile
from local_models.nonsense import Detector
from local_models.tokenizer import Detokenizer, Tokenizer

SUFFIXES = (
    ".py", ".md", ".json", ".yaml", ".txt", ".rst", ".h", ".c", ".pl", ".pm", ".js", ".css",
    ".csv", ".html", ".toml", ".sql",
)  # fmt: skip
PIECE_CHARACTERS = 6_000
TOKENS_MAX = 2_000


def main() -> int:
    """Run the measurement; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pieces", type=int, default=400, help="of each kind of file, at most")
    settings = parser.parse_args()
    tokenizer = Tokenizer(GgufFile(ensure("smollm2-135m-instruct") / "model.gguf").metadata)
    rng = random.Random(1)
    read: Counter[str] = Counter()
    noticed: Counter[tuple[str, str]] = Counter()
    for suffix in SUFFIXES:
        files = sorted(path for folder in settings.folders for path in folder.rglob(f"*{suffix}"))
        rng.shuffle(files)
        for path in files:
            if read[suffix] >= settings.pieces:
                break
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) < 200:
                continue
            begin = rng.randrange(max(1, len(text) - PIECE_CHARACTERS))
            read[suffix] += 1
            found = _judged(tokenizer, text[begin : begin + PIECE_CHARACTERS])
            if found is not None:
                noticed[suffix, found] += 1
                print(f"{found}: {path}")
    total = read.total()
    print(f"{total} pieces: {dict(read)}")
    for kind in ("loop", "endless", "script", "broken"):
        count = sum(number for (_, found), number in noticed.items() if found == kind)
        print(f"{kind:8} {count} of {total}, at most {_upper(count, total):.2%} (95 %, one-sided)")
    return 0


def _judged(tokenizer: Tokenizer, text: str) -> str | None:
    detector, detokenizer = Detector("Write it, please."), Detokenizer(tokenizer)
    for token in tokenizer.encode(text)[:TOKENS_MAX]:
        found = detector.push(token, detokenizer.push(token))
        if found is not None:
            return found
    return None


def _upper(count: int, total: int) -> float:
    """Clopper and Pearson's bound of a share, one-sided, 95 %."""
    low, high = count / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance, term = 0.0, (1 - middle) ** total
        for number in range(count + 1):
            chance += term
            term *= (total - number) / (number + 1) * middle / (1 - middle)
        low, high = (middle, high) if chance > 0.05 else (low, middle)
    return high


if __name__ == "__main__":
    sys.exit(main())
