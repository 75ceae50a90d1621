"""Errors that providers report, in whatever shape and place: read, and given a status.

Providers write an error as the body of a status, as the body of a 200, or as an event of a
stream, and spell it in a dozen ways. Reads all of them; makes no error of ours of them.
"""

from typing import Any

import msgspec
import orjson

_MESSAGE_FIELDS = (
    "message", "msg", "detail", "Message", "error_msg", "error_message", "errorMessage",
    "status_msg", "error_description", "faultstring",
)  # fmt: skip
_STATUS_FIELDS = ("status", "status_code", "statusCode", "http_code", "httpStatus", "code")
_DETAILS_MAX = 8
_DEPTH_MAX = 4  # of errors within errors: each proxy on the way adds one
_ANSWERS = ("choices", "data", "output", "content", "input_tokens")  # what an error never has

# What a name says, by the status that says the same. Names are spelled without anything but
# letters and digits, and without "error" or "exception" at their end: see ``_plain``.
_NAMES_BY_STATUS = {
    400: (
        "invalidrequest", "badrequest", "contextlengthexceeded", "contextwindowexceeded",
        "exceedcontextsize", "stringabovemaxlength", "invalidprompt", "invalidargument",
        "failedprecondition", "validation", "invalidvalue", "unsupportedvalue", "contentfilter",
        "contentpolicyviolation", "unsupportedparameter", "invalidtype", "datainspectionfailed",
    ),
    401: ("authentication", "invalidapikey", "unauthorized", "unauthenticated"),
    402: ("billing", "paymentrequired", "insufficientbalance"),
    403: ("permission", "permissiondenied", "accessdenied", "forbidden"),
    404: (
        "notfound", "modelnotfound", "modelnotavailable", "modeldecommissioned",
        "modeldeprecated", "modelretired", "deploymentnotfound", "unknownmodel",
    ),
    408: ("requesttimeout",),
    413: ("requesttoolarge", "payloadtoolarge"),
    422: ("unprocessableentity",),
    429: (
        "ratelimit", "ratelimitexceeded", "ratelimitreached", "toomanyrequests", "throttling",
        "resourceexhausted", "insufficientquota", "quotaexceeded", "requests", "tokens",
    ),
    500: ("server", "internal", "internalserver", "api"),
    503: (
        "serviceunavailable", "unavailable", "serverisoverloaded", "insufficientsystemresource",
        "engineoverloaded", "modelloading",
    ),
    504: ("timeout", "gatewaytimeout", "deadlineexceeded"),
    529: ("overloaded",),
}  # fmt: skip
_STATUS_OF = {name: code for code, names in _NAMES_BY_STATUS.items() for name in names}
_FAILED_REASONS = frozenset(
    ("error", "abort", "aborted", "cancelled", "canceled", "network_error",
     "insufficient_system_resource", "malformed_function_call")
)  # fmt: skip


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """An error in a provider's own words. Nothing is redacted yet."""

    message: str | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    status: int | None = None  # that it names, or that its names stand for


def read_reported(document: Any, *, certain: bool = False) -> Reported | None:
    """The error that a document reports; None where it reports none.

    certain: the document is known to be one, by its status or by its event's name. Without it,
    and beside a part of an answer, only what cannot be anything else counts.
    """
    if isinstance(document, list) and len(document) == 1:
        document = document[0]  # Google's
    if not isinstance(document, dict):
        return _plain_text(document) if certain else None
    error = _innermost(document.get("error") or document.get("errors") or document.get("fault"))
    if error:
        if isinstance(error, dict):
            return _read(error, document)
        if isinstance(error, str):
            message = _message(document)
            named = {"type": error} if message else {}
            return _read({**named, "message": message or error}, document)
        return _read(document, {})
    base = document.get("base_resp")  # MiniMax's, in every answer
    if isinstance(base, dict) and base.get("status_code"):
        return _read(base, {})
    if certain or "error" in (document.get("object"), document.get("type")):
        return _read(document, {})
    if not any(document.get(name) for name in _ANSWERS) and _message(document) is not None:
        kind = document.get("object")
        answers = isinstance(kind, str) and kind.startswith(("chat.", "text_", "response"))
        return None if answers else _read(document, {})
    return None


def read_odd(data: bytes, *, certain: bool) -> Reported | None:
    """The error that an event or a body reports that is no JSON object: Google's list, or words.

    certain: it is known to report one; else words may be anything.
    """
    text = data.decode(errors="replace").strip()
    try:
        return read_reported(orjson.loads(text), certain=certain)
    except orjson.JSONDecodeError:
        return _plain_text(text) if certain else None


def failed_choice(choice: dict[str, Any]) -> Reported | None:
    """The error that one choice of an answer ended with: its own, or the reason why it ended."""
    error, reason = choice.get("error"), choice.get("finish_reason")
    if isinstance(error, str) and error:
        return Reported(message=error, status=_STATUS_OF.get(_plain(error)))
    if isinstance(error, dict) and error:
        return _read(error, {})
    if isinstance(reason, str) and reason.lower() in _FAILED_REASONS:
        return Reported(
            message=f"The provider ended its answer with the finish reason '{reason}'.",
            status=_STATUS_OF.get(_plain(reason)),
        )
    return None


def names_a_lost_model(code: str | None, status: int) -> bool:
    """Whether an error says that the provider does not have the model, or no longer."""
    named = _STATUS_OF.get(_plain(code)) if code else None
    return status in (404, 410) or (named == 404 and 400 <= status < 500)


def _read(error: dict[str, Any], around: dict[str, Any]) -> Reported:
    """error: the object with the words; around: the one it stands in, which may hold the code."""
    kind, code = error.get("type"), error.get("code")
    if kind is None or kind == "error":
        kind = error.get("status")  # Google's "RESOURCE_EXHAUSTED"
        kind = None if kind == "error" else kind
    if isinstance(code, int) and not isinstance(code, bool) and _http(code) is None:
        code = str(code)  # a vendor's own number
    names = [name for name in (code, kind) if isinstance(name, str)]
    given = [_http(found.get(name)) for found in (error, around) for name in _STATUS_FIELDS]
    named = [_STATUS_OF.get(_plain(name)) for name in names]
    param = error.get("param")
    return Reported(
        message=_message(error),
        type=kind if isinstance(kind, str) else None,
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
        status=next((status for status in (*given, *named) if status is not None), None),
    )


def _message(error: dict[str, Any]) -> str | None:
    for name in _MESSAGE_FIELDS:
        value = error.get(name)
        if isinstance(value, dict):
            value = _message(value)
        elif isinstance(value, list):  # FastAPI's
            value = "; ".join(filter(None, map(_detail, value[:_DETAILS_MAX])))
        if isinstance(value, str) and value:
            return value
    return None


def _detail(item: Any) -> str:
    if not isinstance(item, dict):
        return item if isinstance(item, str) else ""
    place, text = item.get("loc"), item.get("msg") or item.get("message")
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{where}: {text}" if where else str(text or "")


def _innermost(error: Any) -> Any:
    """The error with the words, of one that others have wrapped or listed."""
    for _ in range(_DEPTH_MAX):
        if isinstance(error, list):
            error = error[0] if error else None
        elif isinstance(error, dict) and error.get("error") and _message(error) is None:
            error = error["error"]
        else:
            break
    return error


def _plain_text(value: Any) -> Reported:
    """Words as they are, but no page: its markup says nothing to a client."""
    words = isinstance(value, str) and value and not value.startswith("<")
    return Reported(message=value if words else None)


def _http(value: Any) -> int | None:
    """A status of HTTP that says that something failed."""
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 400 <= value <= 599 else None


def _plain(name: str) -> str:
    kept = "".join(filter(str.isalnum, name.lower()))
    for ending in ("error", "exception"):
        if kept != ending:
            kept = kept.removesuffix(ending)
    return kept
