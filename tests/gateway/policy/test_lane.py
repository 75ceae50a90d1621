"""Lanes: what key, endpoint and model name settle, kept as long as it is true."""

from pathlib import Path

import pytest

from gateway.errors import MissingTags, ModelNotFound
from gateway.policy.evaluate import Scores, by_scores, evaluate
from gateway.policy.lane import LANES_MAX, Lane, Lanes
from gateway.policy.snapshot import Policy
from tests.gateway.policy.policy_texts import POLICY, changed, facts, load

UNTESTED = POLICY.partition("tests:\n")[0] + "---" + POLICY.rpartition("---")[2]
BY_TAG = changed(
    'match: {model: auto, tenant: [acme, "team-*"], tags: {feature: support}}',
    "match: {model: auto, tags: {feature: support}, when: request.stream}",
    UNTESTED,
)


def lane(
    lanes: Lanes, policy: Policy, *, model: str = "auto", key: str = "key_1", **tags: str
) -> Lane:
    """acme's lane for a chat with this name, key and the key's tags."""
    return lanes.get(
        policy, policy.tenants["acme"], key_id=key, key_tags=tags, endpoint="chat", model=model
    )


def test_a_lane_is_made_once_and_shared(tmp_path: Path) -> None:
    """By requests of one key, endpoint and model; another key has its own."""
    lanes, policy = Lanes(), load(tmp_path)
    first = lane(lanes, policy)
    assert lane(lanes, policy) is first
    assert lane(lanes, policy, key="key_2") is not first
    assert lane(lanes, policy, model="large") is not first
    assert len(lanes) == 3


def test_a_lane_goes_with_its_policy(tmp_path: Path) -> None:
    """The first request under a new version finds none of the old ones."""
    lanes, old = Lanes(), load(tmp_path)
    before = lane(lanes, old)
    new = load(tmp_path, BY_TAG)
    after = lane(lanes, new)
    assert (before.policy, after.policy) == (old, new)
    assert len(lanes) == 1


def test_a_key_that_gets_other_tags_gets_another_lane(tmp_path: Path) -> None:
    """Tags decide routes and budgets: the lane follows them."""
    lanes, policy = Lanes(), load(tmp_path)
    assert lane(lanes, policy).way is not None
    plain, support = lane(lanes, policy), lane(lanes, policy, feature="support")
    assert (plain.ways[0].route.name, support.ways[0].route.name) == ("rest", "support")
    assert support.tags == {"unit": "care", "feature": "support"}
    assert lane(lanes, policy).tags == {"unit": "care"}


def test_only_a_condition_on_the_request_leaves_the_way_open(tmp_path: Path) -> None:
    """Tenant, tags and name are settled; ``when`` is asked for each request."""
    policy = load(tmp_path, BY_TAG)
    found = lane(Lanes(), policy, feature="support")
    assert found.way is None
    assert [way.route.name for way in found.ways] == ["support", "rest"]
    assert found.find(facts(stream=True)).route.name == "support"
    assert found.find(facts(stream=False)).route.name == "rest"


def test_lanes_are_bounded(tmp_path: Path) -> None:
    """Beyond the bound the oldest goes, and is made anew when it is asked for."""
    lanes, policy = Lanes(), load(tmp_path)
    first = lane(lanes, policy, key="key_0")
    for number in range(LANES_MAX):
        lane(lanes, policy, key=f"key_{number + 1}")
    assert len(lanes) == LANES_MAX
    assert lane(lanes, policy, key="key_0") is not first


def test_a_name_that_is_refused_leaves_no_lane(tmp_path: Path) -> None:
    """A client that guesses names fills nothing; a tag that lacks is said."""
    lanes, policy = Lanes(), load(tmp_path)
    for name in ("small", "gtp-x"):
        with pytest.raises(ModelNotFound):
            lane(lanes, policy, model=name)
    assert len(lanes) == 0
    strict = load(
        tmp_path, changed("    tags: {unit: care}\n", "    required_tags: [team]\n", UNTESTED)
    )
    with pytest.raises(MissingTags, match="requires the tags team"):
        lane(lanes, strict)
    assert len(lanes) == 0


def test_what_does_not_fit_with_its_answer_goes_to_large_and_the_reason_says_so(
    tmp_path: Path,
) -> None:
    """40 tokens of prompt and 90 of the answer are more than a context of 100."""
    text = changed(
        "upstream_model: smollm2-135m-instruct\n",
        "upstream_model: smollm2-135m-instruct\n    context: 100\n",
    )
    policy, judge = load(tmp_path, text), by_scores(Scores(0.99, 0.99))
    outcome = evaluate(policy, facts(input_tokens=40, output_tokens=90), judge)
    assert [model.name for model in outcome.targets] == ["large"]
    assert outcome.reason == (
        "about 40 prompt tokens and up to 90 of the answer do not fit the small model's 100"
    )
    fitting = evaluate(policy, facts(input_tokens=40, output_tokens=60), judge)
    assert [model.name for model in fitting.targets] == ["small", "large"]


def test_the_reason_names_the_large_model_that_does_not_speak_the_endpoint(tmp_path: Path) -> None:
    """Where only the small one can answer, no property of the text is blamed for it."""
    policy = load(tmp_path)
    asked = facts(endpoint="decisions", ends_with_user_text=False)
    outcome = evaluate(policy, asked, by_scores(Scores(0.99, 0.99)))
    assert [model.name for model in outcome.targets] == ["small"]
    assert outcome.reason == "large does not speak decisions: small instead"
