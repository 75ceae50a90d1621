"""Which models the demo runs, decided from its options and from what the machine has room for.

Knows the catalogue. Starts nothing.
"""

from collections.abc import Mapping

import click
import msgspec

from gateway.cli.demo_processes import Large
from local_models.catalogue import ModelEntry, load_catalogue
from local_models.fit import shortage
from local_models.messages import DEFAULT
from local_models.references import MODEL_FILE, default_candidate

NONE = "none"
"""In place of a model's name: run without one."""

SHORT = {
    "135m": "smollm2-135m-instruct",
    "0.5b": "qwen2.5-coder-0.5b-instruct",
    "1.5b": "qwen2.5-coder-1.5b-instruct",
}
PAIR = ("0.5b", "1.5b")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo runs.

    small: the small model as the policy names it; empty: none. likely: the models that will answer
    on this machine, unless they cannot be had. lack: why the default is not the better one.
    """

    large: Large
    small: str
    likely: tuple[ModelEntry, ...] = ()
    lack: str = ""


def choose(model: str, pair: bool, environ: Mapping[str, str]) -> Choice:
    """Decide what runs. Raises ClickException where it cannot, saying what it would need."""
    answering = {n: entry for n, entry in load_catalogue().items() if MODEL_FILE in entry.files}
    if pair:
        small, large = (SHORT[name] for name in PAIR)
        if model != DEFAULT:
            small = _named(model, answering)
        likely = (answering[small], answering[large])
        _require_room(likely)
        return Choice(large="pair", small=small, likely=likely)
    kind: Large = "openai" if environ.get("OPENAI_API_KEY") else "simulated"
    if model == NONE:
        return Choice(large=kind, small="")
    if model == DEFAULT:
        name, lack = default_candidate()
        return Choice(large=kind, small=DEFAULT, likely=(answering[name],), lack=lack)
    small = _named(model, answering)
    _require_room((answering[small],))
    return Choice(large=kind, small=small, likely=(answering[small],))


def _named(model: str, answering: Mapping[str, ModelEntry]) -> str:
    name = SHORT.get(model.lower(), model)
    if name not in answering:
        known = ", ".join((*SHORT, *answering, NONE))
        raise click.ClickException(f"there is no model {model!r} that answers; known are {known}")
    return name


def _require_room(entries: tuple[ModelEntry, ...]) -> None:
    for entry in entries:
        if lack := shortage(entry):
            raise click.ClickException(f"{lack}; --model 135m needs least, --model {NONE} nothing")
