"""gateway/README.md against the code: stages, errors, headers, files, tests and layers."""

import re
from pathlib import Path

import msgspec

from gateway import pipeline, respond
from gateway.exchange import Plan
from gateway.policy.snapshot import RateLimits
from gateway.policy.targets import Decision
from gateway.stores.limits import Limiter
from gateway.wire import cors
from gateway.wire.dialects import DIALECTS
from gateway.wire.usage import Usage
from tests.gateway.exchanges import SMALL, attempt, exchange, stored
from tests.gateway.test_errors import tree

GATEWAY = Path(respond.__file__).parent
README = (GATEWAY / "README.md").read_text()
TESTS = Path(__file__).parent


def section(title: str) -> str:
    _, _, rest = README.partition(f"\n## {title}\n")
    assert rest, f"there is no section {title!r}"
    return rest.partition("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """The rows of a section's table, without its head; code marks removed."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_the_table_of_stages_is_the_two_lists_in_order() -> None:
    """A reader who looks for where a request is refused finds the true order."""
    stages = [stage.__name__ for stage in pipeline.FORWARD + pipeline.CLOSING]
    assert [row[0] for row in table("Stages")] == stages


def test_every_field_a_stage_is_said_to_write_exists() -> None:
    """More than 20 fields are named, and each is one of the exchange."""
    fields = {
        field
        for line in section("Stages").splitlines()
        if line.startswith("| `")
        for field in re.findall(r"`(\w+)`", line.split("|")[3])
    }
    assert fields <= set(exchange().__slots__)
    assert len(fields) > 20


def test_the_table_of_errors_is_the_tree() -> None:
    """Operators look up a status or a code here, so each row must match its class."""
    described = [tuple(row) for row in table("Errors")]
    theirs = "the provider's"
    assert described == [
        (kind.__name__, theirs, theirs)
        if kind.__name__ == "UpstreamStatus"
        else (kind.__name__, str(kind.status), kind.code or "none")
        for kind in tree()
    ]


def test_the_table_of_headers_is_what_an_answer_can_carry() -> None:
    """Two answers with everything that can happen send just these, and a page may read all."""
    made = exchange()
    made.marks.append(("authenticate", 100.001))
    made.attempts.append(attempt(SMALL, Usage(prompt_tokens=1)))
    made.attempts[-1].output_cap = 512
    made.attempts[-1].upstream_request_id = "req_1"
    limited = respond.answer_lines(made).splitlines()
    made.hit, made.cache_id, made.charge_pico = stored(Usage()), "01CACHED", 0
    made.decision = Decision(small=True, difficulty=0.2, threshold=0.5, reason="easy")
    limits = RateLimits(requests_per_minute=5, tokens_per_minute=500)
    made.rate = Limiter().reserve("acme", limits, 10, 1, 100.0)
    made.endpoint = "messages"  # whose clients read one more
    made.rate.allowance = msgspec.structs.replace(made.rate.allowance, degraded=True)
    made.plan = Plan(
        candidates=(SMALL,), decision="downgraded", reason="", output_tokens_max=1, worst_pico=(1,),
        instead="downgraded; budget=monthly; from=large",
    )  # fmt: skip
    lines = [*limited, *respond.answer_lines(made).splitlines()]
    sent = dict(line.split(b": ", 1) for line in lines)
    assert sorted(row[0].encode() for row in table("Response headers")) == sorted(sent)
    asked = {b"origin": b"https://a.test"}
    exposed = cors.answer_lines(asked, {"*"}).partition(b"expose-headers: ")[2].strip().split(b", ")
    assert set(sent) <= set(exposed), "a page reads all of them"
    assert all(re.fullmatch(rb"[\x20-\x7e]+", value) for value in sent.values()), sent


def test_a_request_refused_at_the_door_carries_what_is_known_of_it() -> None:
    """Even without a route, support can find it by its id and policy version."""
    made = exchange()
    del made.route
    names = {line.partition(b":")[0] for line in respond.answer_lines(made).splitlines()}
    assert names == {
        b"x-request-id", b"openai-processing-ms", b"x-tollhouse-policy", b"x-tollhouse-cache",
    }  # fmt: skip


def test_the_table_of_dialects_names_every_endpoint() -> None:
    """No endpoint is served without a row, and none is promised without a parser."""
    rows = [(row[0].split(", "), row[1]) for row in table("Dialects")]
    described = {endpoint: dialect for endpoints, dialect in rows for endpoint in endpoints}
    assert described == {endpoint: dialect.name for endpoint, dialect in DIALECTS.items()}


def test_every_module_is_in_the_tree_and_every_name_in_the_tree_exists() -> None:
    """A newcomer's map of the folder has no gap and no dead name."""
    listing = section("The folder").split("```")[1]
    named = {
        name.removesuffix("/").removesuffix(".py")
        for line in listing.splitlines()
        for name in line[:22].split()
    }
    modules = {path.stem for path in GATEWAY.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in GATEWAY.glob("*/__init__.py")}
    assert modules <= named
    assert named <= modules | packages


def test_every_test_that_proves_a_promise_exists() -> None:
    """Each invariant points to a test that can be opened and run."""
    proofs = re.findall(r"`([\w/]+\.py)`", section("Invariants"))
    assert len(proofs) > 15
    assert [name for name in proofs if not (TESTS / name).exists()] == []


def test_the_layers_are_those_the_linter_enforces() -> None:
    """Read downwards, both name the same parts in the same order."""
    project = (GATEWAY.parent / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert layers is not None
    enforced = [set(re.findall(r"gateway\.(\w+)", line)) for line in layers[1].splitlines()]
    drawn = re.findall(r"\w+", section("Layers").split("```")[1])
    position = 0
    for layer in enforced:
        assert set(drawn[position : position + len(layer)]) == layer
        position += len(layer)
    assert position == len(drawn)


def test_the_changelog_has_each_heading_and_each_change_once() -> None:
    """In the order of Keep a Changelog: merges like to keep what both sides have."""
    text = (GATEWAY.parent / "CHANGELOG.md").read_text()
    for version in text.split("\n## ")[1:]:
        order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        headings = re.findall(r"(?m)^### (.+)$", version)
        assert headings == [name for name in order if name in headings]
        begun = [line[:40] for line in version.splitlines() if line.startswith("- ")]
        assert sorted(begun) == sorted(set(begun))
