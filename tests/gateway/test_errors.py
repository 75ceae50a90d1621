"""The tree of errors: what its page says is what its classes do."""

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import GatewayError, MethodNotAllowed, UpstreamStatus

LINE = re.compile(r"^ {4}(?P<branch>[│ ]*)[├└]── (?P<name>\w+) +(?P<status>\d{3}|\*)?(?: |$)")


def tree(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """Every class of the tree, parents first. Only those of ``errors.py``: there are no others."""
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


def documented() -> dict[str, tuple[int, str | None]]:
    """Name to (depth, status) in the module's docstring."""
    found = {}
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match:
            found[match["name"]] = (len(match["branch"]) // 4 + 1, match["status"])
    return found


def make(kind: type[GatewayError], **options: float) -> GatewayError:
    if kind is UpstreamStatus:
        return UpstreamStatus("the reason", status=418, **options)  # type: ignore[arg-type]
    if kind is MethodNotAllowed:
        return MethodNotAllowed("the reason", allow="POST")
    return kind("the reason", **options)  # type: ignore[arg-type]


def test_the_docstring_s_tree_is_the_tree_of_classes() -> None:
    """An error that is added or moved without its documentation fails here."""
    depths = {kind.__name__: len(kind.__mro__) - len(GatewayError.__mro__) for kind in tree()}
    assert {name: depth for name, (depth, _) in documented().items()} == depths


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_each_class_has_the_status_its_documentation_says(kind: type[GatewayError]) -> None:
    """Operators rely on the statuses of this page; a provider's own status is kept."""
    _, status = documented()[kind.__name__]
    if status == "*":
        assert make(kind).status == 418, "the provider's own"
    else:
        assert kind.status == int(status or 0)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_each_error_has_openai_s_shape_and_a_code_programs_can_tell(
    kind: type[GatewayError],
) -> None:
    """Each code is lower case with underscores, so that programs branch on it and not on prose."""
    document = json.loads(make(kind).body())
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"] == "the reason"
    assert document["error"]["type"]
    if kind is not errors.InvalidRequest:  # OpenAI's own have no code either
        assert re.fullmatch(r"[a-z_]+", document["error"]["code"])


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_the_openai_client_is_told_whether_to_retry_wherever_it_would_guess(
    kind: type[GatewayError],
) -> None:
    """It retries 408, 409, 429 and 5xx unless x-should-retry says otherwise."""
    error = make(kind)
    advice = dict(error.headers()).get(b"x-should-retry")
    if error.status in (408, 409, 429) or error.status >= 500:
        assert advice == (b"true" if error.retryable else b"false")
    else:
        assert advice is None


def test_money_and_mistakes_are_never_retried_and_load_is() -> None:
    """Retrying a used-up budget only costs; rate limits and overload pass by themselves."""
    never = (errors.BudgetExhausted, errors.InternalError, errors.NotCached)
    assert not any(kind.retryable for kind in never)
    again = (errors.RateLimited, errors.Overloaded, errors.BudgetUnavailable)
    assert all(kind.retryable for kind in again)


@given(st.floats(-10, 1e9))
def test_advice_to_wait_is_never_shorter_than_the_wait_nor_zero(seconds: float) -> None:
    """A client that obeys never comes too early, and waits a second too long at most."""
    headers = dict(errors.RateLimited("slow down", retry_after_seconds=seconds).headers())
    whole, ms = int(headers[b"retry-after"]), int(headers[b"retry-after-ms"])
    assert whole >= max(1, seconds)
    assert ms >= max(1, seconds * 1000)
    assert whole <= max(1, seconds + 1)
    assert ms <= max(1, seconds * 1000 + 1)


def test_without_a_known_wait_none_is_advised() -> None:
    """A made-up number would hold clients back for no reason."""
    assert not [name for name, _ in errors.Overloaded("busy").headers() if b"retry-after" in name]


@given(st.text())
def test_any_message_becomes_one_event_without_a_line_of_its_own(message: str) -> None:
    """A newline in a message must not end the event and let the rest pass for another."""
    if any("\ud800" <= character <= "\udfff" for character in message):
        return
    event = errors.UpstreamTimeout(message).event()
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert b"\n" not in event[:-2]
    assert b"\r" not in event
    assert json.loads(event[6:])["error"]["message"] == message


def test_the_provider_s_own_status_type_and_code_are_passed_on() -> None:
    """A client's handling of that provider's errors works through the gateway as before."""
    error = UpstreamStatus(
        "no such tool", status=409, type="conflict_error", code="tool_gone", param="tools"
    )
    assert json.loads(error.body())["error"] == {
        "message": "no such tool", "type": "conflict_error", "param": "tools", "code": "tool_gone",
    }  # fmt: skip
    assert error.status == 409
    assert isinstance(error, errors.UpstreamError)


def test_a_policy_error_carries_every_problem() -> None:
    """An operator mends all mistakes in one go, and no client sees them."""
    error = errors.PolicyError(("a.yaml:1:1: first", "b.yaml:2:2: second"))
    assert error.problems == ("a.yaml:1:1: first", "b.yaml:2:2: second")
    assert str(error) == "a.yaml:1:1: first\nb.yaml:2:2: second"
    assert not isinstance(error, GatewayError), "no client is ever told of it"
