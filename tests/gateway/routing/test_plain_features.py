"""The quick way to features and scores finds what the plain way finds, on any text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway
from gateway.policy.snapshot import QualityTarget
from gateway.routing import Router, anchors
from gateway.routing.features import NAMES, excerpt, extract, words_of
from gateway.routing.prior import Prior, load_shipped
from tests.gateway.routing import plain_features
from tests.gateway.routing.test_router import EASY, HARD

TARGET = QualityTarget(quality=0.95, until_then="prior")
# What the patterns look for, and what stands near it: neighbours, other scripts, odd spaces.
PIECES = [
    *"aAbZ 09_()[]{}=<>^-+*/%$\\.,;:!?'\"`#\n\t\r\v\x1c~",
    *"’“€×÷≤≥•éİ\u212a٣²\x85\xa0\u2003\ud800",
    *("a = b", "x<=y", "in ", "spanish", "into French's", "f(", "2f(", "a_b", "camelCase"),
    *(" Bc", "the De La", "\nA. ", "(B) ", "\n12) ", "\n- ", "Answer:", "```", "$x^2$"),
    *("1,000.5", "3 + 4", "don't", "'tis", "Prove that", "patient", "extraordinarily"),
]


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_shipped()


@pytest.fixture(scope="module")
def router(prior: Prior) -> Router:
    return Router(prior)


def check(prior: Prior, router: Router, text: str) -> None:
    expected = plain_features.features(text)
    assert dict(zip(NAMES, extract(text), strict=True)) == pytest.approx(
        dict(zip(NAMES, expected, strict=True)), abs=1e-12
    )
    score = router.score(text, uncertain_around=TARGET)
    assert (score.p_small, score.p_large) == pytest.approx(
        plain_features.probabilities(prior, text), abs=1e-9
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=200))
def test_any_text_has_the_features_and_the_score_of_the_plain_way(
    prior: Prior, router: Router, text: str
) -> None:
    """400 texts full of odd signs: the fast code must not judge other than the readable one."""
    check(prior, router, text)


def test_prompts_prose_and_code_have_the_features_and_the_score_of_the_plain_way(
    prior: Prior, router: Router
) -> None:
    """The anchors, unseen prompts, and this very program: beginnings, middles and whole files."""
    files = [path.read_text() for path in sorted(Path(gateway.__file__).parent.glob("*.*"))]
    parts = [part for text in files for part in (text[:300], text[3_000:4_500])]
    for text in (*anchors.easy(), *anchors.hard(), *EASY, *HARD, *parts, *files[:3]):
        check(prior, router, text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_words_and_figures_are_those_of_one_pattern(text: str) -> None:
    """Whichever way they are found, each kind is in the order of the text."""
    found = plain_features.words(text)
    words = words_of(text)
    assert words.spelt == [word for word in found if not word[0].isdigit()]
    assert words.figures == [word for word in found if word[0].isdigit()]


def test_a_long_prompt_is_judged_by_its_beginning_and_its_end() -> None:
    """3,000 characters and the last 1,000, where the task stands, bound the time to score."""
    text = "a" * 3_000 + "b" * 6_000 + "c" * 1_000
    assert excerpt(text) == "a" * 3_000 + "\n" + "c" * 1_000
