"""No part of a stop string is ever shown, however the text is cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from local_models.stopping import StopFilter


def _stream(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    shown = "".join(map(stop_filter.push, pieces)) + stop_filter.flush()
    return shown, stop_filter.stopped


def test_text_before_the_stop_string_is_all_that_is_shown() -> None:
    """A stop string over two pieces is cut out at its very first letter."""
    assert _stream(["one, tw", "o, th", "ree"], (", th",)) == ("one, two", True)


def test_what_only_looked_like_a_stop_string_is_shown_at_the_end() -> None:
    """Text that was held back is not lost when the answer ends first."""
    assert _stream(["a", "a", "ab"], ("aaac",)) == ("aaab", False)
    assert _stream(["x\n"], ("\n\n",)) == ("x\n", False)


def test_text_that_cannot_begin_a_stop_string_is_not_delayed() -> None:
    """A reader waits only for letters that may still become the stop string."""
    stop_filter = StopFilter(("END",))
    assert [stop_filter.push(piece) for piece in ("a", "bE", "N", "x")] == ["a", "b", "", "ENx"]


def test_after_a_stop_string_nothing_comes_any_more() -> None:
    """Later pieces of the model stay hidden, and there is nothing left to flush."""
    stop_filter = StopFilter(("b",))
    assert [stop_filter.push(piece) for piece in ("ab", "c")] == ["a", ""]
    assert stop_filter.flush() == ""


@given(
    text=st.text("abc", max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
    cuts=st.lists(st.integers(0, 12), max_size=6),
)
def test_the_cut_into_pieces_does_not_matter(
    text: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    """Whole, character by character and cut anywhere, against a plain search of the whole text."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    borders = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    assert _stream([text], stops) == expected
    assert _stream(list(text), stops) == expected
    assert _stream(pieces, stops) == expected
