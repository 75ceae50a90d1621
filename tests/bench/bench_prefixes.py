"""Time to the first token where a system prompt repeats, with and without sharing it.

    python -m tests.bench.bench_prefixes [--model NAME] [--tokens 600] [--rounds 9]

Both ways in turns on one engine, otherwise idle. Prints median (lowest to highest) in milliseconds.
"""

import argparse
import statistics
import time

from local_models.catalogue import ensure
from local_models.engine import Delta, Engine, Finished, GenerationRequest, SamplingParams
from tests.local_models.generating import Inbox

QUESTIONS = ("When is it open?", "Where do I return a book?", "May I bring my dog?")


def system_prompt(engine: Engine, tokens: int) -> str:
    """Words that make a system message of about so many tokens."""
    sentence = "Books are lent for four weeks, and films for one. "
    each = engine.count_tokens(sentence)
    return "You answer for a library. " + sentence * (tokens // each)


def first_token(engine: Engine, system: str, question: str, scope: str) -> tuple[float, Finished]:
    """Seconds until the first text, and the end."""
    messages = ({"role": "system", "content": system}, {"role": "user", "content": question})
    params = SamplingParams(max_tokens=2, temperature=0)
    inbox, began = Inbox(), time.perf_counter()
    engine.submit(
        GenerationRequest(request_id="r", messages=messages, params=params, scope=scope),
        inbox.deliver,
    )
    took = 0.0
    while True:
        _, message = inbox.next()
        if isinstance(message, Delta):
            took = took or time.perf_counter() - began
        else:
            return took, message


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    engine = Engine.load(ensure(options.model))
    system = system_prompt(engine, options.tokens)
    seconds: dict[str, list[float]] = {"shared": [], "": []}
    cached: dict[str, int] = {}
    first_token(engine, system, "Hello", "shared")  # the first of a scope reads everything
    for number in range(options.rounds):
        question = f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"
        for scope, taken in seconds.items():
            took, end = first_token(engine, system, question, scope)
            taken.append(1e3 * took)
            cached[scope] = end.cached_tokens
            prompt_tokens = end.prompt_tokens
    engine.close()
    print(f"{options.model}: prompts of {prompt_tokens} tokens, {options.rounds} rounds")
    for scope, taken in seconds.items():
        name = f"{cached[scope]} tokens shared" if scope else "nothing shared"
        spread = f"{min(taken):.0f} to {max(taken):.0f}"
        print(f"  {name}: {statistics.median(taken):.0f} ms ({spread})")


if __name__ == "__main__":
    main()
