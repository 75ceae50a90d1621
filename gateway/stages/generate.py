"""generate: try the targets until one answers, and pass its bytes to the client.

Retries and falls back only before the first byte. Frames are relayed as they came; the last
bytes are kept back until the answer is booked. Refuses to know HTTP: ``Upstream`` does.
"""

import asyncio
import random
from typing import Any

import msgspec
import orjson

from gateway.aside import aside
from gateway.booking import attempt_event, charge_pico, intent, worst_case_pico
from gateway.caches.single_flight import LeadersClient
from gateway.errors import (
    BudgetExhausted,
    BudgetUnavailable,
    UpstreamError,
    UpstreamNonsense,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamStatus,
    UpstreamTimeout,
)
from gateway.estimates import (
    of_document,
    of_interrupted,
    of_stream,
    tokens_so_far,
    with_thoughts,
)
from gateway.exchange import EVENT_STREAM, Attempt, Exchange
from gateway.ledger.budgets import Hold
from gateway.metering import completed
from gateway.policy.snapshot import Model
from gateway.retries import Limits, after, is_stale
from gateway.services import Services
from gateway.telemetry import status_label
from gateway.upstreams.base import (
    COMPUTE_HEADER,
    UNSENT,
    Upstream,
    UpstreamRequest,
    UpstreamResponse,
)
from gateway.upstreams.health import Outcome
from gateway.wire.dialects import DIALECTS, Relay
from gateway.wire.openai import (
    WITHOUT_OUTPUT,
    reported_error,
    under_known_limit,
)
from gateway.wire.reported import read_reported
from gateway.wire.sse import begins_a_document, begins_a_stream
from gateway.wire.told_cost import tells_cost, without_cost
from gateway.wire.usage import Usage
from gateway.wire.verbatim import decode, encode, read

_REQUEST_ID_HEADERS = (b"x-request-id", b"request-id")
_CHECKPOINT_EVENTS = 64
_CHECKPOINT_SECONDS = 1.0
_AFTER_DONE_SECONDS = 0.05  # patience for the end of an answer whose [DONE] has come
_OPENING_SECONDS = 1.0  # Anthropic tells of overload within it, after its first event


async def generate(exchange: Exchange, services: Services) -> None:
    """Complete ``attempts`` and set ``answer`` and ``tail``. Raises UpstreamError.

    A client that leaves cancels this coroutine: the upstream is closed on the way out, and what
    was generated stays in the attempt's ``usage``.
    """
    plan = exchange.plan
    assert plan is not None, "plan comes before generate"
    deadline = exchange.started + max(
        [target.provider.timeouts.total_seconds for target in plan.candidates]
    )
    durable = services.ledger.durable()
    if durable is not None:
        await durable  # the intent, where the settings ask for power-safe books
    flight = exchange.flight
    if flight is not None:
        if plan.decision == "downgraded":
            flight.finish(None)  # who follows may have money left
        exchange.client.watch(flight.outliving(asyncio.current_task()))
    try:
        while not exchange.answered:
            attempt = exchange.attempts[-1]
            try:
                await _try(exchange, services, attempt, deadline)
                exchange.answered = True
            except UpstreamError as error:
                attempt.error = error
                error.__traceback__ = None  # its frames hold what holds it
                await _go_on(exchange, services, attempt, error, deadline)
            finally:
                attempt.ended_monotonic = services.monotonic()
    finally:
        if flight is not None:
            flight.outliving(None)


async def _go_on(
    exchange: Exchange,
    services: Services,
    attempt: Attempt,
    error: UpstreamError,
    deadline: float,
) -> None:
    """Begin the attempt that follows a failed one. Raises ``error`` where none does."""
    following = after(
        exchange,
        attempt,
        error,
        Limits(
            attempts_max=services.settings.limits.attempts_max,
            now=services.monotonic(),
            deadline=deadline,
            jitter=random.random(),  # noqa: S311 - no secret
            may_retry=services.upstream(attempt.target.provider).retries.take,
        ),
    )
    if following.degraded:
        exchange.degraded = following.degraded
    if following.target is None:
        raise error
    if following.wait_seconds:
        await asyncio.sleep(following.wait_seconds)
    if error.stale and exchange.tenant.budgets:
        await _hold_more(exchange, services, attempt, error)
    _begin_next(exchange, services, attempt, following.target)


async def _try(exchange: Exchange, services: Services, attempt: Attempt, deadline: float) -> None:
    """One attempt, in a slot of its upstream's."""
    upstream = services.upstream(attempt.target.provider)
    if attempt.number == 1:
        upstream.retries.request(attempt.started_monotonic)
    slots, tenant = upstream.slots, exchange.tenant.id
    now, patience = services.monotonic(), attempt.target.provider.timeouts.first_byte_seconds
    first_byte_deadline = min(deadline, now + patience)
    if not slots.take(tenant):
        await slots.wait(tenant, first_byte_deadline - now)
    try:
        await _ask(exchange, services, attempt, upstream, deadline, first_byte_deadline)
    finally:
        slots.release(tenant)


async def _ask(
    exchange: Exchange,
    services: Services,
    attempt: Attempt,
    upstream: Upstream,
    deadline: float,
    first_byte_deadline: float,
) -> None:
    """Send, judge the head, and relay. Leaves in ``usage`` or ``unknown`` what it may cost."""
    provider = attempt.target.provider
    dialect = DIALECTS[exchange.endpoint]
    timeouts = provider.timeouts
    outcome: Outcome = "failed"
    status = "none"
    response: UpstreamResponse | None = None
    attempt.output_cap = _output_cap(exchange, attempt.target)
    if exchange.large:
        encoded = await aside(_encode, exchange, attempt)
    else:
        encoded = _encode(exchange, attempt)
    try:
        response = await upstream.send(
            UpstreamRequest(
                request_id=f"{exchange.request_id}/{attempt.number}",
                path=attempt.target.paths[exchange.endpoint],
                model=attempt.target.name,
                body=encoded,
                headers=_headers(exchange, attempt),
                scope=_prefix_scope(exchange, attempt),
                stream=exchange.request.stream,
                fresh=attempt.fresh,
                first_byte_deadline=first_byte_deadline,
                idle_seconds=timeouts.idle_seconds,
                deadline=deadline,
            )
        )
        attempt.upstream_request_id = _upstream_request_id(response)
        if response.status != 200:
            body = await _read(response)
            if response.status < 500 and response.status != 429:
                outcome = "ok"
            raise dialect.provider_error(
                response.status,
                body,
                response.headers,
                _secrets(attempt),
                services.now_us() / 1e6,
            )
        if exchange.request.stream:
            await _relay_stream(exchange, services, attempt, response, first_byte_deadline)
        else:
            await _relay_document(exchange, services, attempt, response)
        outcome = "ok"
    except UpstreamError as error:
        status = error.outcome
        if isinstance(error, UpstreamOverloaded) or error.stale:
            outcome = "unknown"  # it was not asked, or perhaps not
        elif isinstance(error, UpstreamStatus) and error.status < 500 and error.status != 429:
            outcome = "ok"
        if attempt.usage is None or not attempt.usage.completion_tokens:
            # Nothing came. A provider that says so bills nothing; one that is silent may.
            attempt.usage = None
            if not error.unsent and not isinstance(error, UpstreamStatus):
                attempt.unknown = "possible"
        raise
    except BaseException as failure:
        outcome = "unknown"  # the client left: nobody's fault, and no proof of health
        if attempt.usage is None and UNSENT not in failure.args:
            if exchange.request.stream:
                attempt.usage = of_interrupted(exchange, attempt, None, services.monotonic())
            else:
                attempt.unknown = "charged"  # it wrote, and nobody saw how much
        if attempt.usage is not None and attempt.usage.source == "partial_stream":
            now = services.monotonic()
            attempt.usage = with_thoughts(exchange, attempt, attempt.usage, now)
        raise
    finally:
        if response is not None:
            response.close()
        upstream.report(outcome)
        if response is not None and status != UpstreamNonsense.code:
            status = status_label(response.status)
        services.metrics.upstream_requests_total.inc((provider.name, attempt.target.name, status))


def _encode(exchange: Exchange, attempt: Attempt) -> bytes:
    request = exchange.request
    if exchange.endpoint == "chat" and _limit_unknown(exchange, attempt.target):
        request = under_known_limit(request)
    return DIALECTS[exchange.endpoint].encode(
        request,
        upstream_model=attempt.target.upstream_model,
        max_output_tokens=attempt.output_cap,
        limit_field=attempt.target.limit_field,
    )


async def _relay_document(
    exchange: Exchange,
    services: Services,
    attempt: Attempt,
    response: UpstreamResponse,
    begun: bytes = b"",
) -> None:
    """Keep a whole answer for the client. begun: what of it has been read already."""
    body = begun + await _read(response)
    arrived = services.monotonic()
    dialect = DIALECTS[exchange.endpoint]
    name = attempt.target.provider.name
    document: Any = None
    if dialect.whole is not None and not exchange.request.stream and begins_a_stream(body):
        document, attempt.usage = dialect.whole(exchange.request, body, _secrets(attempt))
        body = encode(document)
    else:
        try:
            document = read(body)
        except orjson.JSONDecodeError:
            kind = (response.header(b"content-type") or b"nothing").decode("latin-1")[:100]
            raise UpstreamProtocolError(
                f"The provider '{name}' answered with invalid JSON, called {kind}."
            ) from None
    whole = isinstance(document, dict)
    reported = dialect.failure(document) if whole else read_reported(document)
    if reported is not None:
        attempt.usage = dialect.usage(document) if whole else None
        told = attempt.usage is not None
        raise reported_error(reported, _secrets(attempt), begun=told)
    if not whole or not dialect.is_answer(document):
        raise UpstreamProtocolError(
            f"The provider '{name}' answered with something else than {exchange.endpoint} promises."
        )
    usage = completed(
        attempt.usage or dialect.usage(document),
        exchange.request,
        attempt.target,
        tier_named=document.get("service_tier"),
        estimate=lambda: of_document(exchange, attempt, document),
    )
    attempt.usage = _with_compute(attempt, response, usage)
    if tells_cost(document.get("usage")):
        body = without_cost(body)
        document = decode(body)
    exchange.first_byte = arrived
    if exchange.request.stream:
        if dialect.replay is None:
            raise UpstreamProtocolError(
                f"The provider '{name}' answered with a whole document instead of a stream."
            )
        body = dialect.replay(exchange.request, document)
        exchange.tail_content_type = EVENT_STREAM
    exchange.answer = document
    exchange.tail = body


async def _relay_stream(
    exchange: Exchange,
    services: Services,
    attempt: Attempt,
    response: UpstreamResponse,
    first_frame_deadline: float,
) -> None:
    flight = exchange.flight
    relay = DIALECTS[exchange.endpoint].relay(
        exchange.request,
        exchange.cache_key is not None or exchange.partition is not None,
        flight is not None,
        _secrets(attempt),
    )
    client = exchange.client
    write = client.write if flight is None else LeadersClient(flight, client.write).write
    checkpoint_events, checkpoint_at = _CHECKPOINT_EVENTS, 0.0
    patience = first_frame_deadline - services.monotonic()
    relays = True
    try:
        frames, document = await _first_frames(relay, response, patience)
        if document:
            relays = False
            await _relay_document(exchange, services, attempt, response, document)
            return
        if frames:
            exchange.first_byte = services.monotonic()
            checkpoint_at = exchange.first_byte + _CHECKPOINT_SECONDS
            client.start(exchange, 200, EVENT_STREAM)
            unread = write(frames)
            if unread is not None:
                await unread
        while not relay.finished:
            data = await response.receive()
            if not data:
                break
            frames = relay.feed(data)
            if not frames:
                continue
            unread = write(frames)
            if unread is not None:
                await unread
            if relay.content_events >= checkpoint_events or (
                relay.content_events & 7 == 0 and services.monotonic() >= checkpoint_at
            ):
                checkpoint_events = relay.content_events + _CHECKPOINT_EVENTS
                checkpoint_at = services.monotonic() + _CHECKPOINT_SECONDS
                services.ledger.checkpoint(_event_id(exchange, attempt), tokens_so_far(relay))
        exchange.tail = relay.end()
        if flight is not None:
            flight.publish_usage(relay.usage_event)
            if exchange.request.include_usage:
                exchange.tail = relay.usage_event + exchange.tail
        exchange.tail_content_type = EVENT_STREAM
        await _drain(response)
        exchange.answer = relay.answer()
    finally:
        if relays:
            exchange.next_sequence = relay.next_sequence
            usage = of_stream(exchange, attempt, relay, services.monotonic())
            attempt.usage = _with_compute(attempt, response, usage)


async def _first_frames(
    relay: Relay, response: UpstreamResponse, seconds: float
) -> tuple[bytes, bytes]:
    """What is to be passed on first, and what has come of a document instead of a stream.

    A head is no answer yet, nor is a comment, nor an event that says who will answer: as long as
    nothing was generated, another target can still be asked. So it reads up to a frame with a part
    of the answer, and holds an opening for ``_OPENING_SECONDS``. Raises UpstreamTimeout after
    ``seconds``, and what ``relay`` raises.
    """
    frames, begun, opened = b"", False, False
    try:
        async with asyncio.timeout(seconds) as patience:
            while not relay.finished:
                data = await response.receive()
                if not data:
                    break
                if not begun and (begun := not data.isspace()) and begins_a_document(data):
                    return b"", data
                frames += relay.feed(data)
                if relay.content_events:
                    return frames, b""
                if not opened and b"data:" in frames:
                    opened, loop = True, asyncio.get_running_loop()
                    due = loop.time() + _OPENING_SECONDS
                    patience.reschedule(min(due, patience.when() or due))
    except TimeoutError:
        if opened:
            return frames, b""  # it thinks, and the client sees that somebody is there
        raise UpstreamTimeout("The provider did not begin to answer in time.") from None
    relay.end()  # raises where there is no answer: nothing has gone to the client yet
    return frames, b""


async def _drain(response: UpstreamResponse) -> None:
    """Read the end of a finished answer, so that its connection can serve again."""
    try:
        async with asyncio.timeout(_AFTER_DONE_SECONDS):
            while await response.receive():
                pass
    except (TimeoutError, UpstreamError):
        response.close()


async def _read(response: UpstreamResponse) -> bytes:
    first = await response.receive()
    if not first:
        return b""
    chunks = [first]
    while data := await response.receive():
        chunks.append(data)
    return b"".join(chunks) if len(chunks) > 1 else first


async def _hold_more(
    exchange: Exchange, services: Services, attempt: Attempt, error: UpstreamError
) -> None:
    """Hold the worst case of a call that the plan did not foresee. Raises ``error`` without room.

    What the failed call possibly cost stays held, so the next one needs a hold of its own.
    """
    try:
        hold = services.ledger.budgets.reserve(
            exchange.tenant,
            exchange.tags,
            charge_pico(exchange, attempt.held_pico) or 0,
            exchange.started_us,
            _event_id(exchange, attempt),
        )
        exchange.more_holds += (hold if isinstance(hold, Hold) else await hold,)
    except (BudgetExhausted, BudgetUnavailable):
        raise error from None


def _begin_next(exchange: Exchange, services: Services, failed: Attempt, target: Model) -> None:
    """Book the failed attempt and put the next one's intent on record."""
    assert exchange.plan is not None, "there is a plan once there is an attempt"
    failed.ended_monotonic = services.monotonic()
    services.ledger.settle(
        attempt_event(exchange, failed, recorded_us=services.now_us(), superseded=True)
    )
    following = Attempt(
        number=failed.number + 1,
        target=target,
        started_us=services.now_us(),
        started_monotonic=services.monotonic(),
        held_pico=worst_case_pico(exchange, target, exchange.plan.output_tokens_max),
        fresh=is_stale(failed),
    )
    services.ledger.intend(intent(exchange, following, exchange.request.prompt_bytes // 4 + 1))
    exchange.attempts.append(following)


def _output_cap(exchange: Exchange, target: Model) -> int | None:
    """A limit for a request that sets none where money is bounded; None leaves it as it came."""
    if exchange.endpoint in WITHOUT_OUTPUT or exchange.request.max_output_tokens is not None:
        return None
    tenant_max = exchange.tenant.limits.max_output_tokens
    if tenant_max is not None:
        return min(tenant_max, target.output_tokens_max)
    return target.output_tokens_max if exchange.tenant.budgets else None


def _limit_unknown(exchange: Exchange, target: Model) -> bool:
    """Whether a target may ignore the only limit that a chat has, where money is bounded."""
    body, tenant = exchange.request.body, exchange.tenant
    return (
        target.limit_field == "max_tokens"
        and bool(body.get("max_completion_tokens"))
        and body.get("max_tokens") is None
        and (bool(tenant.budgets) or tenant.limits.max_output_tokens is not None)
    )


def _headers(exchange: Exchange, attempt: Attempt) -> tuple[tuple[bytes, bytes], ...]:
    """Our own request id, and of the client's headers those that the dialect lets through."""
    dialect, given = DIALECTS[exchange.endpoint], exchange.headers
    own = (b"x-request-id", _event_id(exchange, attempt).encode())
    passed_on = [(name, given[name]) for name in dialect.passed_on if name in given]
    for name, value in dialect.required:
        if name not in given:
            passed_on.append((name, value))
    return (own, *passed_on)


def _prefix_scope(exchange: Exchange, attempt: Attempt) -> str:
    """With whom a request to a local model shares the beginning of its prompt; empty: nobody."""
    provider = attempt.target.provider
    kind = provider.runtime.prefix_scope
    if provider.api != "local" or kind == "none":
        return ""
    return "" if kind == "user" and exchange.request.user is None else exchange.scope(kind)


def _secrets(attempt: Attempt) -> tuple[str, ...]:
    secret = attempt.target.provider.authorization
    return (secret.reveal(),) if secret is not None else ()


def _upstream_request_id(response: UpstreamResponse) -> str | None:
    for name in _REQUEST_ID_HEADERS:
        value = response.header(name)
        if value is not None:
            return value.decode("latin-1")[:200]
    return None


def _event_id(exchange: Exchange, attempt: Attempt) -> str:
    return f"{exchange.request_id}/{attempt.number}"


def _with_compute(attempt: Attempt, response: UpstreamResponse, usage: Usage) -> Usage:
    """The usage, and of the local model the processor time that it tells beside its answer."""
    if attempt.target.provider.api != "local":
        return usage
    told = response.header(COMPUTE_HEADER)
    return usage if told is None else msgspec.structs.replace(usage, compute_us=int(told))
