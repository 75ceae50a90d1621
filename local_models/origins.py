"""What a model file is and where it came from, written beside it as ``origin.yaml``.

Knows the record and its file. Does not know how a file is fetched or what is inside it.
"""

import os
from pathlib import Path

import msgspec
import yaml

ORIGIN_FILE = "origin.yaml"
NOT_STATED = "not stated"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The licence of a model's files, their publisher, and the pinned place they come from.

    revision: 40 hexadecimal digits, or what is known instead. sha256: file name -> digest of the
    whole file. source: where this machine got it; a mirror's or hub's address, or the index.
    """

    model: str
    license: str = NOT_STATED
    publisher: str = NOT_STATED
    repository: str = ""
    revision: str = NOT_STATED
    remark: str = ""
    source: str = ""
    sha256: dict[str, str] = {}
    changed: bool = False


def write_origin(folder: Path, origin: Origin) -> None:
    """Put ``origin.yaml`` into the folder, whole or not at all. Raises OSError."""
    target = folder / ORIGIN_FILE
    scratch = target.with_name(f".{ORIGIN_FILE}.{os.getpid()}")
    text = "# Written by tollhouse: what the files beside this one are.\n"
    text += yaml.safe_dump(msgspec.to_builtins(origin), sort_keys=False, allow_unicode=True)
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def read_origin(folder: Path) -> Origin | None:
    """The folder's record; None where there is none that can be read."""
    try:
        text = (folder / ORIGIN_FILE).read_text(encoding="utf-8")
        return msgspec.convert(yaml.safe_load(text), Origin)
    except (OSError, ValueError, yaml.YAMLError):
        return None
