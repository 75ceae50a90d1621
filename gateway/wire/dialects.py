"""Every endpoint that clients may call, and how it is spoken: the one table of dialects.

Nothing is translated: a request is answered by a provider that speaks its dialect, or refused.
Knows paths, headers and bytes. Knows no socket, no policy, no money.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from gateway.errors import GatewayError, UpstreamProtocolError, UpstreamStatus
from gateway.wire import anthropic, decisions, openai, responses
from gateway.wire.assemble import answer_text, replay
from gateway.wire.openai import Endpoint, ParsedRequest
from gateway.wire.relay import StreamRelay
from gateway.wire.reported import Reported, failed_choice, read_reported
from gateway.wire.typed_events import TypedEventRelay
from gateway.wire.typed_forms import (
    message_events,
    response_events,
    whole_message,
    whole_response,
)
from gateway.wire.usage import Usage
from gateway.wire.usage_reading import usage_of_chat

DialectName = Literal["chat", "responses", "messages", "decisions"]
Relay = StreamRelay | TypedEventRelay


class _Encode(Protocol):
    def __call__(
        self,
        request: ParsedRequest,
        *,
        upstream_model: str,
        max_output_tokens: int | None,
        limit_field: str,
    ) -> bytes: ...


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How one endpoint is spoken, by clients and by providers."""

    name: DialectName  # what a provider must speak
    path: str  # at the provider, below its base URL
    parse: Callable[[Endpoint, bytes | bytearray, str | None], ParsedRequest]
    encode: _Encode
    is_answer: Callable[[dict[str, Any]], bool]
    # The error that an answer of status 200 reports, where it is no answer or only begun to be one.
    failure: Callable[[dict[str, Any]], Reported | None]
    usage: Callable[[dict[str, Any]], Usage | None]  # None: the provider did not tell
    text: Callable[[dict[str, Any]], str]  # all generated text
    # (request, keep the answer?, do others follow the stream?, secrets)
    relay: Callable[[ParsedRequest, bool, bool, Sequence[str]], Relay]
    # A document as the events of a stream, and a stream's bytes as a document and its usage: for
    # providers that answer in another form than they were asked for. None: nobody can tell.
    replay: Callable[[ParsedRequest, dict[str, Any]], bytes] | None = None
    whole: (
        Callable[[ParsedRequest, bytes, Sequence[str]], tuple[dict[str, Any], Usage | None]] | None
    ) = None
    provider_error: Callable[
        [int, bytes, Iterable[tuple[bytes, bytes]], Sequence[str], float], UpstreamStatus
    ] = openai.upstream_error
    # Of the client's headers, those that a provider gets to see. Never those that name an account
    # (openai-organization, openai-project): ours is not the client's.
    passed_on: tuple[bytes, ...] = (b"traceparent", b"tracestate")
    required: tuple[tuple[bytes, bytes], ...] = ()  # what a provider must get, where none came
    own_request_id: bool = False  # its clients read ``request-id``, not ``x-request-id``
    error_body: Callable[[GatewayError, str], bytes] | None = None  # None: OpenAI's own
    error_event: Callable[[GatewayError, str, int], bytes] | None = None


def _lists(field: str) -> Callable[[dict[str, Any]], bool]:
    def is_answer(document: dict[str, Any]) -> bool:
        answers = document.get(field)
        if not isinstance(answers, list) or not answers:
            return False
        for answer in answers:  # noqa: SIM110 - all() of a generator takes three times as long
            if not isinstance(answer, dict):
                return False
        return True

    return is_answer


def _failure(document: dict[str, Any]) -> Reported | None:
    """Of a whole answer of chat: beside the choices, or in one of them."""
    choices = document.get("choices")
    if document.get("error") or not choices:
        reported = read_reported(document)
        if reported is not None:
            return reported
    for choice in choices if isinstance(choices, list) else ():
        failed = failed_choice(choice) if isinstance(choice, dict) else None
        if failed is not None:
            return failed
    return None


def _chat_relay(request: ParsedRequest, keep: bool, shared: bool, secrets: Sequence[str]) -> Relay:
    return StreamRelay(
        endpoint=request.endpoint,
        # Of a shared stream it comes with the end: not everyone who follows asked for it.
        include_usage=request.include_usage and not shared,
        keep=keep,
        choices=request.choices,
        secrets=secrets,
    )


def _chat_replay(request: ParsedRequest, document: dict[str, Any]) -> bytes:
    events = replay(request.endpoint, document, include_usage=request.include_usage)
    return b"".join(events)


def _whole_chat(
    request: ParsedRequest, stream: bytes, secrets: Sequence[str]
) -> tuple[dict[str, Any], Usage | None]:
    """Raises UpstreamError where the stream breaks, or cannot be put together beyond doubt."""
    relay = StreamRelay(
        endpoint=request.endpoint,
        include_usage=False,
        keep=True,
        choices=request.choices,
        keep_bytes_max=len(stream),
        secrets=secrets,
    )
    relay.feed(stream)
    relay.end()
    document = relay.answer()
    if document is None:
        raise UpstreamProtocolError(
            "The provider answered with a stream that makes no whole document."
        )
    return document, relay.usage


def _whole_typed(
    relay: Callable[[Sequence[str]], TypedEventRelay],
    put_together: Callable[[bytes], dict[str, Any]],
) -> Callable[[ParsedRequest, bytes, Sequence[str]], tuple[dict[str, Any], Usage | None]]:
    def whole(
        request: ParsedRequest, stream: bytes, secrets: Sequence[str]
    ) -> tuple[dict[str, Any], Usage | None]:
        look = relay(secrets)  # raises where the stream breaks or reports an error
        look.feed(stream)
        look.end()
        return put_together(stream), look.usage

    return whole


_CHAT = Dialect(
    name="chat",
    path="/chat/completions",
    parse=openai.parse_request,
    encode=openai.encode_request,
    is_answer=_lists("choices"),
    failure=_failure,
    usage=usage_of_chat,
    text=answer_text,
    relay=_chat_relay,
    replay=_chat_replay,
    whole=_whole_chat,
)
_MESSAGES = Dialect(
    name="messages",
    path="/messages",
    parse=anthropic.parse_request,
    encode=anthropic.encode_request,
    is_answer=anthropic.is_message,
    failure=read_reported,
    usage=anthropic.usage_of_message,
    text=anthropic.answer_text,
    relay=lambda request, keep, shared, secrets: anthropic.MessagesRelay(secrets),
    replay=lambda request, document: message_events(document),
    whole=_whole_typed(anthropic.MessagesRelay, whole_message),
    provider_error=anthropic.read_error,
    passed_on=(*_CHAT.passed_on, b"anthropic-version", b"anthropic-beta"),
    required=((b"anthropic-version", b"2023-06-01"),),
    own_request_id=True,
    error_body=anthropic.error_body,
    error_event=anthropic.error_event,
)
_replace = msgspec.structs.replace
DIALECTS: dict[Endpoint, Dialect] = {
    "chat": _CHAT,
    "completions": _replace(_CHAT, path="/completions"),
    "embeddings": _replace(
        _CHAT, path="/embeddings", is_answer=_lists("data"), failure=read_reported, whole=None
    ),
    "messages": _MESSAGES,
    "count_tokens": _replace(
        _MESSAGES,
        path="/messages/count_tokens",
        is_answer=anthropic.is_count,
        usage=anthropic.usage_of_count,
        text=lambda document: "",
        replay=None,
        whole=None,
    ),
    "responses": Dialect(
        name="responses",
        path="/responses",
        parse=responses.parse_request,
        encode=responses.encode_request,
        is_answer=responses.is_response,
        failure=read_reported,
        usage=responses.usage_of_response,
        text=responses.answer_text,
        relay=lambda request, keep, shared, secrets: responses.ResponsesRelay(secrets),
        replay=lambda request, document: response_events(document),
        whole=_whole_typed(responses.ResponsesRelay, whole_response),
        passed_on=(*_CHAT.passed_on, b"openai-beta"),
        error_event=responses.error_event,
    ),
    "decisions": _replace(
        _CHAT,
        name="decisions",
        path="/decisions",
        parse=decisions.parse_request,
        is_answer=_lists("answers"),
        failure=read_reported,
        text=lambda document: "",
        replay=None,
        whole=None,
    ),
}

MODELS = "/v1/models"
_ANTHROPICS = ("/v1/messages", "/v1/complete", "/v1/skills")
_PATHS: dict[str, Endpoint] = {
    "/v1" + dialect.path: endpoint for endpoint, dialect in DIALECTS.items()
}
POST_PATHS = {path.encode(): endpoint for path, endpoint in _PATHS.items()}  # as they mostly come
_AZURE = "/openai"
_DEPLOYMENTS = "/openai/deployments/"
_UNDER_DEPLOYMENT: dict[str, Endpoint] = {
    DIALECTS[endpoint].path: endpoint for endpoint in ("chat", "completions", "embeddings")
}


def locate(path: str) -> tuple[Endpoint | None, str | None]:
    """(endpoint, deployment) of a decoded path, as OpenAI, Anthropic and Azure spell them.

    The deployment is Azure's name of the model. (None, None) where nothing is posted to the path.
    """
    endpoint = _PATHS.get(path)
    if endpoint is not None:
        return endpoint, None
    if path.startswith(_DEPLOYMENTS):
        rest = path.removeprefix(_DEPLOYMENTS)
        for suffix, under in _UNDER_DEPLOYMENT.items():
            if rest.endswith(suffix) and rest != suffix:
                return under, rest.removesuffix(suffix)
        return None, None
    if path.startswith(_AZURE + "/v1/"):
        return _PATHS.get(path.removeprefix(_AZURE)), None
    if path == _AZURE + DIALECTS["responses"].path:
        return "responses", None
    return None, None


def v1_path(path: str) -> str:
    """A path of Azure's as the one of ours that it stands for; any other as it is."""
    if path.startswith(_AZURE + "/v1/"):
        return path.removeprefix(_AZURE)
    return MODELS if path == _AZURE + "/models" else path


def spoken_at(path: str, headers: Mapping[bytes, bytes]) -> Endpoint | None:
    """An endpoint whose clients ask for a path that we do not have; None: OpenAI's."""
    anthropic = b"anthropic-version" in headers or path.startswith(_ANTHROPICS)
    return "messages" if anthropic else None


def meant(path: str) -> str | None:
    """Our path that a wrong base URL has spoiled: without ``/v1``, or with it more than once."""
    rest = path.rstrip("/")
    while rest.startswith("/v1/"):
        rest = rest.removeprefix("/v1")
    right = "/v1" + rest
    known = right in _PATHS or right == MODELS or right.startswith(MODELS + "/")
    return right if known and right != path else None


def provider_paths(
    dialects: Iterable[DialectName],
    *,
    deployment: str | None = None,
    api_version: str | None = None,
) -> dict[Endpoint, str]:
    """By endpoint, its path at a provider who speaks these dialects, below the base URL.

    deployment and api_version: Azure's older paths, which name the model; with neither, OpenAI's.
    """
    spoken = frozenset(dialects)
    found: dict[Endpoint, str] = {}
    for endpoint, dialect in DIALECTS.items():
        if dialect.name not in spoken:
            continue
        path = dialect.path
        if api_version is not None:
            place = f"/deployments/{deployment}" if dialect.name == "chat" else ""
            path = f"{place}{path}?api-version={api_version}"
        found[endpoint] = path
    return found


def error_body(endpoint: Endpoint | None, error: GatewayError, request_id: str) -> bytes:
    """The error document that a client of this endpoint expects; None: of OpenAI's."""
    render = DIALECTS[endpoint].error_body if endpoint is not None else None
    return error.body() if render is None else render(error, request_id)


def error_event(endpoint: Endpoint, error: GatewayError, request_id: str, sequence: int) -> bytes:
    """The event that ends a broken stream of this endpoint.

    sequence: the event's number, in dialects that count them.
    """
    render = DIALECTS[endpoint].error_event
    return error.event() if render is None else render(error, request_id, sequence)
