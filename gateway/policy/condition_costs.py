"""What a condition may cost at most, judged by its text: a request waits for it, and so do others.

Both bounds err on the safe side. Knows no CEL but its loops, lists and ``matches``.
"""

import math
import re

TEXTS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
LOOP = re.compile(r"\.\s*(all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")
_DEPTH_MAX = 2  # loops in each other
_TAGS_MAX = 32  # of a request
# Measured on an EPYC at 2.6 GHz, best of 20: two `all` over 49 elements, 2,401 turns, 0.72 ms; one
# `map` over 150 elements, which copies its list at each of them, 0.7 ms, over 900 24 ms.
_TURNS_MAX = 2_500
_COPIES_PER_TURN = 10
_MATCHES = re.compile(r"\bmatches\b")
_LITERAL_MATCHES = re.compile(r"\.\s*matches\s*\(\s*[rR]?\"\"\s*\)")
_PATTERN = re.compile(rf"\.\s*matches\s*\(\s*([rR]?)({TEXTS.pattern})\s*\)")
# A pattern is compiled at each call: `\w+` takes 240 µs, `\w{1,100}` 58 ms.
_PATTERNS_MICROSECONDS_MAX = 2_000
_ESCAPED = re.compile(r"\\[xXuU0-7]")  # what CEL itself turns into another character
_TOKEN = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{(\d{1,9})(,(\d{0,9}))?\}"
    r"|\(\?[a-zA-Z-]+\)|(\()(?:\?(?:P?<\w+>|[a-zA-Z-]*:))?|(\))|.",
    re.DOTALL,
)
# Of one occurrence: classes of all alphabets are long tables.
_MICROSECONDS = {r"\\[wWpPxuUN0-7]": 270, r"\\[bB]": 60, r"\\[dDsS]": 20, r"\.|\[\^": 6}


def refuse_dear(text: str) -> None:
    """Raise ValueError, in words, where a condition may hold up requests for milliseconds."""
    bare = TEXTS.sub('""', text)
    turns, depth = _turns(bare)
    if depth > _DEPTH_MAX:
        raise ValueError(f"a condition has at most {_DEPTH_MAX} loops in each other")
    if turns > _TURNS_MAX:
        raise ValueError(
            f"loops over so many elements may turn {turns} times and {_TURNS_MAX} are allowed:"
            " write shorter lists, or no loop in another"
        )
    if len(_MATCHES.findall(bare)) != len(_LITERAL_MATCHES.findall(bare)):
        raise ValueError("what matches compares with is one text in quotes: x.matches('^a-')")
    microseconds = 0
    for raw, quoted in _PATTERN.findall(text):
        if not raw and _ESCAPED.search(quoted.replace("\\\\", "")):
            raise ValueError("a pattern with \\x, \\u or digits after a backslash reads r'...'")
        pattern = quoted[1:-1] if raw else quoted[1:-1].replace("\\\\", "\\")
        microseconds += pattern_microseconds(pattern) * max(1, turns)
    if microseconds > _PATTERNS_MICROSECONDS_MAX:
        raise ValueError(
            f"its patterns may take {microseconds / 1_000:.0f} ms and"
            f" {_PATTERNS_MICROSECONDS_MAX / 1_000:.0f} are allowed: write [a-z0-9] for \\w, and"
            " repeat with + and *, not with numbers"
        )


def _turns(bare: str) -> tuple[int, int]:
    """The turns of all loops together, and how many of them are in each other."""
    turns, deepest = 0, 0
    open_loops: list[tuple[int, str, int]] = []  # end, variable and elements of each
    for loop in LOOP.finditer(bare):
        open_loops = [outer for outer in open_loops if outer[0] > loop.start()]
        looped = bare[_beginning(bare, loop.start()) : loop.start()]
        # A list grows by what is written in it, and by adding lists to each other.
        elements = (looped.count(",") + 1) * (looped.count("+") + 1)
        if "tags" in looped:
            elements = max(elements, _TAGS_MAX)
        for _, variable, count in open_loops:
            if re.search(rf"\b{variable}\b", looped):
                elements *= count  # of a list of lists
        end = _closing(bare, bare.index("(", loop.start()))
        open_loops.append((end, loop[2], elements))
        deepest = max(deepest, len(open_loops))
        copying = loop[1] in ("map", "filter")
        turns += math.prod(count for _, _, count in open_loops) * (
            1 + copying * elements // _COPIES_PER_TURN
        )
    return turns, deepest


def _beginning(bare: str, end: int) -> int:
    """Where the expression begins that is looped over: a chain of names, calls and brackets."""
    place = end
    while place > 0 and (bare[place - 1].isalnum() or bare[place - 1] in '_.)]}" \n'):
        place -= 1
        if bare[place] in ")]}":
            depth = 1
            while depth and place > 0:
                place -= 1
                depth += (bare[place] in ")]}") - (bare[place] in "([{")
    return place


def _closing(bare: str, opening: int) -> int:
    """Where the bracket at ``opening`` is closed."""
    depth = 0
    for place in range(opening, len(bare)):
        depth += (bare[place] in "([{") - (bare[place] in ")]}")
        if depth == 0:
            return place
    return len(bare)


def pattern_microseconds(pattern: str) -> int:
    """The time that compiling a pattern may take: what is repeated by numbers is copied."""
    sums, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        least, more, most, opened, closed = token.groups()
        if opened:
            sums.append(0)
        elif closed:
            last = sums.pop() if len(sums) > 1 else 0
            sums[-1] += last
        elif least:
            copies = max(int(least), int(most or 0) if more else 0, 1)
            sums[-1] += last * (copies - 1)
            last *= copies
        else:
            last = 2 + sum(
                cost for part, cost in _MICROSECONDS.items() if re.search(part, token[0])
            )
            sums[-1] += last
    return sum(sums)
