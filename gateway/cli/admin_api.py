"""What the commands share that talk to a running gateway: where it is and who one is."""

import os
import sys
from pathlib import Path
from typing import Any

import click
import httpx

UNREACHABLE = 3

_TIMEOUT_SECONDS = 10.0


def admin_options(command: Any) -> Any:
    """``--admin-url`` and ``--admin-key`` for a click command, passed on as an ``AdminApi``."""
    command = click.option(
        "--admin-url",
        default="http://127.0.0.1:8081",
        show_default=True,
        envvar="TOLLHOUSE_ADMIN_URL",
        show_envvar=True,
        help="The gateway's admin port.",
    )(command)
    return click.option(
        "--admin-key",
        envvar="TOLLHOUSE_ADMIN_KEY",
        help="A tha_ key; default: $TOLLHOUSE_ADMIN_KEY, or the file $TOLLHOUSE_ADMIN_KEY_FILE.",
    )(command)


def _key_from_file() -> str:
    path = os.environ.get("TOLLHOUSE_ADMIN_KEY_FILE")
    if not path:
        raise click.UsageError(
            "an admin key is needed: --admin-key, $TOLLHOUSE_ADMIN_KEY or $TOLLHOUSE_ADMIN_KEY_FILE"
        )
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None


class AdminApi:
    """The admin interface of one gateway. A refusal ends the command with its message."""

    def __init__(self, admin_url: str, admin_key: str | None) -> None:
        """Ends with wrong usage where there is no key."""
        admin_key = admin_key or _key_from_file()
        self._client = httpx.Client(
            base_url=admin_url,
            headers={"authorization": f"Bearer {admin_key}"},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer's JSON. Exits 3 when there is no gateway, 1 when it refuses."""
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            click.echo(
                f"No gateway answers at {self._client.base_url}: {error}. Is it running?", err=True
            )
            sys.exit(UNREACHABLE)
        document = answer.json() if answer.content else None
        if answer.is_error:
            message = document["error"]["message"] if isinstance(document, dict) else answer.text
            click.echo(message, err=True)
            sys.exit(1)
        return document
