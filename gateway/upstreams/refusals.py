"""What the local model cannot do, said with the field's name. Knows OpenAI's errors."""

from typing import Any

from gateway.errors import UpstreamStatus

Body = dict[str, Any]
"""A JSON object of a request or an answer."""


def refuse(field: str, why: str, code: str = "unsupported_value") -> UpstreamStatus:
    """The 400 that names a field."""
    error = UpstreamStatus(
        f"The local model cannot serve this request: {field} {why}.",
        status=400,
        type="invalid_request_error",
        code=code,
        param=field,
    )
    error.unsent = True
    return error
