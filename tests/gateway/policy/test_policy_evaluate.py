"""Deciding without sending: conditions, targets and explanations."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.conditions import compile_condition, compile_match
from gateway.policy.evaluate import Scores, by_scores, evaluate, unjudged
from gateway.policy.explain import as_text, explain
from tests.gateway.policy.policy_texts import changed, facts, load

GOOD = Scores(0.97, 0.98)
PERMISSIVE = changed("    allow_models: [auto, large, gpt-x]\n", "")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("request.input_tokens < 6000 && !request.has_tools", True),
        ("request.input_tokens >= 6000 || request.stream", False),
        ('request.tags.feature == "support"', True),
        ('request.tags["feature"] == "support" && tenant.id.startsWith("ac")', True),
        ('request.tags.team == "red"', False),
        ('!(request.tags.team == "red")', False),
        ('"team" in request.tags', False),
        ('has(request.tags.team) && request.tags.team == "red"', False),
        ("request.temperature > 0.7", True),
        ('request.tags.exists(key, key == "feature")', True),
        ('request.model == "request.nothing"', False),
        ('tenant.id in ["acme", "globex"]', True),
    ],
)
def test_a_condition_holds_or_does_not(text: str, holds: bool) -> None:
    """One that asks for a tag which the request lacks does not hold."""
    assert compile_condition(text)(facts()) is holds


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from(
                ["request", ".", "tags", "(", ")", "'x'", "&&", "!", "1", "0.5", "[", "]", "{", "}",
                 "model", "==", "tenant.id", "matches", "size", "in", "?", ":", "-", "/", "\\", " "]
            ),
            max_size=14,
        ).map("".join),
    )
)  # fmt: skip
def test_any_text_is_a_condition_or_a_value_error(text: str) -> None:
    """And what compiles answers true or false for a real request."""
    try:
        condition = compile_condition(text)
    except ValueError:
        return
    assert condition(facts(tags={})) in (True, False)


def test_a_match_names_what_does_not_hold() -> None:
    """The first of its conditions, as it is written."""
    match = compile_match(["acme", "a-*"], {"feature": "support", "env": "*"}, "request.stream")
    assert match.first_failing(facts(tenant="globex")) == "tenant: acme, a-*"
    assert match.first_failing(facts(tags={})) == "tags: feature=support"
    assert match.first_failing(facts()) == "tags: env=*"
    tags = {"feature": "support", "env": "any"}
    assert match.first_failing(facts(tenant="a-1", tags=tags)) == "when: request.stream"
    assert match.first_failing(facts(tags=tags, stream=True)) is None


@pytest.mark.parametrize(
    ("changes", "scores", "targets", "because"),
    [
        ({}, GOOD, ["small", "large"], "small is good enough: 0.97 of 0.98"),
        ({}, Scores(0.5, 0.98), ["large"], "small is not good enough: 0.50 of 0.98"),
        ({}, None, ["small", "large"], "the difficulty decides"),
        ({"has_tools": True}, GOOD, ["large"], "tools go to the large model"),
        ({"has_images": True}, GOOD, ["large"], "images, audio and files go to the large model"),
        ({"input_tokens": 6001}, GOOD, ["large"], "about 6001 prompt tokens, over 6000"),
        ({"model": "large"}, None, ["large"], "route rest: large was asked for by name"),
        ({"model": "small"}, None, ["small"], "route rest: small was asked for by name"),
        ({"model": "gpt-x"}, None, ["large", "small"], "route alias: gpt-x is large"),
        ({"model": "gtp-x"}, None, [], "the model 'gtp-x' is not known; did you mean 'gpt-x'?"),
    ],
)
def test_a_request_goes_where_the_policy_says(
    tmp_path: Path,
    changes: dict[str, object],
    scores: Scores | None,
    targets: list[str],
    because: str,
) -> None:
    """Model names, forced cases and scores, in the order the gateway looks at them."""
    judge = by_scores(scores) if scores is not None else unjudged
    outcome = evaluate(load(tmp_path, PERMISSIVE), facts(**changes), judge)
    assert [model.name for model in outcome.targets] == targets
    assert outcome.reason.startswith(because)
    assert outcome.decided is (because != "the difficulty decides")


def test_an_alias_that_only_another_route_lists_is_answered_by_the_one_that_takes_it(
    tmp_path: Path,
) -> None:
    """Without the tag that the alias's route wants, the catch-all must still have a target."""
    text = changed("match: {model: [gpt-x]}", "match: {model: [gpt-x], tags: {beta: '1'}}")
    outcome = evaluate(load(tmp_path, text), facts(model="gpt-x"))
    assert outcome.route is not None
    assert (outcome.route.name, outcome.targets[0].name) == ("rest", "large")


def test_an_explanation_says_why_each_route_was_passed_over(tmp_path: Path) -> None:
    """In the order of the file, with the place of each, up to the one that is taken."""
    found = explain(load(tmp_path), facts(tags={}))
    assert [(step.route, step.verdict) for step in found.steps] == [
        ("support", "does not hold: tags: feature=support"),
        ("alias", "not for model: auto; its models: gpt-x"),
        ("rest", "taken"),
    ]
    assert found.steps[0].where.endswith("policy.yaml:28:5")
    text = as_text(found)
    for expected in (
        "route     rest",
        "targets   large",
        "12.5000 USD",
        "requests_per_minute: 600",
    ):
        assert expected in text


def test_an_explanation_honours_what_a_tenant_may_use(tmp_path: Path) -> None:
    """acme may not ask for the small model by name."""
    found = explain(load(tmp_path), facts(model="small"))
    assert found.route is None
    assert found.reason == "the tenant 'acme' may not use the model 'small'"
