"""The values of the language: counts, durations, shares, money, names, references.

Each reads what a person writes (``400k``, ``30s``, ``5%``, ``"12.50"``) and refuses the rest in
words; each says the same in JSON Schema. Knows no key.
"""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from gateway.money import parse_usd
from gateway.yaml_documents import UNSHOWN, Referenced

_SIZE = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]{0,31}://[a-z0-9._-]{1,253}(:[0-9]{1,5})?")


def _count(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(k|M|G|)", value)
        if match is None:
            raise ValueError("a count reads 400, 400k or 2M")
        scaled = Decimal(match[1]) * _SIZE[match[2]]
        if scaled != int(scaled):
            raise ValueError("a count is a whole number")
        return int(scaled)
    return value


def duration_seconds(value: Any) -> float:
    """Seconds of a text such as ``90s``. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", value)
        if match is not None:
            return float(match[1]) * _SECONDS[match[2]]
    raise ValueError("a duration reads 250ms, 30s, 10m, 6h or 7d")


def _share(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(%|)", value)
        if match is None:
            raise ValueError("a share reads 5% or 0.05")
        if match[2]:
            return float(Decimal(match[1]) / 100)
        value = float(match[1])
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if 1 < value <= 100:
        raise ValueError(f"must be at most 1: write {value:g}%")
    return float(value)


def _money(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError('money is a text in quotes, such as "12.50", so that it stays exact')
    try:
        pico = parse_usd(value)
    except ValueError:
        raise ValueError(
            'money is a plain decimal number in quotes, such as "12.50", of 12 decimals at most'
        ) from None
    if pico < 0:
        raise ValueError("money is not negative")
    return value


def _name(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError(
            "a name has letters, digits and . _ : / - and begins with one of the first two"
        )
    return value


def _origin(value: str) -> str:
    if _ORIGIN.fullmatch(value) is None:
        raise ValueError(
            "an origin is what a browser calls it, in lower case: https://app.example or"
            " http://localhost:3000, without a path; or * for any"
        )
    return value


def _not_yet(value: Any) -> Any:
    raise PydanticCustomError(UNSHOWN, "not supported yet; remove it")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def statuses_as_text(value: Any) -> Any:
    """HTTP statuses in a list of words: ``429`` may stand without quotes."""
    if isinstance(value, list):
        return [str(item) if type(item) is int else item for item in value]
    return value


def _switchable(value: Any) -> Any:
    """``off`` and ``on``, which YAML 1.1 tools write back as false and true."""
    if isinstance(value, bool):
        return {} if value else None
    if not isinstance(value, str):
        return value
    if value in ("off", "on"):
        return {} if value == "on" else None
    meant = {"no": "off", "false": "off", "yes": "on", "true": "on"}.get(value.lower())
    hint = f": write {meant}" if meant else ""
    raise PydanticCustomError(UNSHOWN, "{message}", {"message": (
        f"expected off, on, or a mapping of keys, not the text {value[:40]!r}{hint}"
    )})  # fmt: skip


def _reference(value: Any) -> Any:
    if not isinstance(value, Referenced):
        raise PydanticCustomError(
            UNSHOWN,
            "a secret is a reference, ${env:NAME} or ${file:/path}, never in the file itself",
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise PydanticCustomError(
            UNSHOWN, "has characters that an authorization header cannot carry"
        )
    return str(value)


def _pem(value: Any) -> Any:
    if not isinstance(value, Referenced):
        raise PydanticCustomError(
            UNSHOWN, "certificate and key are a reference, ${file:/path} or ${env:NAME}"
        )
    return str(value)


def _proxy(value: Any) -> Any:
    if isinstance(value, str) and "@" in value and not isinstance(value, Referenced):
        raise PydanticCustomError(
            UNSHOWN, "a proxy with a password is a reference, ${env:NAME} or ${file:/path}"
        )
    return str(value) if isinstance(value, str) else value


def _json(kind: "str | list[str]", **rest: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": kind, **rest})


class _OffOrOn:
    """In the JSON Schema too, a section may be off or on, in whatever YAML's words, or nothing."""

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kinds = [kind for kind in handler(core_schema)["anyOf"] if kind.get("type") != "null"]
        words = ["off", "on", False, True, None]
        return {"anyOf": [*kinds, {"enum": words}]}


_SHARE_PATTERN = "^[0-9]{1,9}([.][0-9]{1,9})?%?$"
_SHARE_JSON = _json(["number", "string"], minimum=0, maximum=1, pattern=_SHARE_PATTERN)
OFF_OR_ON = (BeforeValidator(_switchable), _OffOrOn())
_SIZE_MAX = 10**12
SLOTS_MAX = 64  # of one local model
CONTEXT_TOKENS_MAX = 1_048_576  # of one local model


def _size_json(most: int) -> WithJsonSchema:
    return _json(
        ["integer", "string"],
        minimum=1,
        maximum=most,
        pattern="^[0-9]{1,15}([.][0-9]{1,9})?[kMG]?$",
    )


Size = Annotated[int, BeforeValidator(_count), Field(ge=1, le=_SIZE_MAX), _size_json(_SIZE_MAX)]
Slots = Annotated[int, BeforeValidator(_count), Field(ge=1, le=SLOTS_MAX), _size_json(SLOTS_MAX)]
ContextTokens = Annotated[
    int,
    BeforeValidator(_count),
    Field(ge=1, le=CONTEXT_TOKENS_MAX),
    _size_json(CONTEXT_TOKENS_MAX),
]
Duration = Annotated[
    float,
    BeforeValidator(duration_seconds),
    Field(gt=0, le=366 * 86_400),
    _json("string", pattern="^[0-9]{1,9}([.][0-9]{1,9})?(ms|s|m|h|d)$"),
]
Share = Annotated[
    float,
    BeforeValidator(_share),
    Field(ge=0, le=1),
    _SHARE_JSON,
]
SmallShare = Annotated[
    Share,
    Field(gt=0, le=0.2),
    _json(["number", "string"], exclusiveMinimum=0, maximum=0.2, pattern=_SHARE_PATTERN),
]
Money = Annotated[
    str, BeforeValidator(_money), _json("string", pattern="^[0-9]+([.][0-9]{1,12})?$")
]
Name = Annotated[str, AfterValidator(_name), _json("string", pattern=f"^{_NAME.pattern}$")]
Origin = Annotated[str, AfterValidator(_origin), _json("string", pattern=f"^({_ORIGIN.pattern})$")]
Names = Annotated[
    list[str],
    BeforeValidator(_listed),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
SecretReference = Annotated[
    str, BeforeValidator(_reference), _json("string", pattern=r"[$][{](env|file):[^}]+[}]")
]
PemReference = Annotated[
    str, BeforeValidator(_pem), _json("string", pattern=r"[$][{](env|file):[^}]+[}]")
]
ProxyUrl = Annotated[str, BeforeValidator(_proxy)]
Tags = dict[Name, Annotated[str, Field(max_length=128)]]


class Statuses:
    """In the JSON Schema too, an HTTP status may stand without quotes."""

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(core_schema)
        words = found["items"]["enum"]
        numbers = [int(word) for word in words if word.isdecimal()]
        found["items"] = {"enum": [*words, *numbers]}
        return found


NotYet = SkipJsonSchema[Annotated[Any, BeforeValidator(_not_yet)]]
