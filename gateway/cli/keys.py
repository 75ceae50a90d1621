"""``tollhouse key``: create, list and revoke keys, through the admin interface or offline."""

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.admin_api import AdminApi, admin_options
from gateway.cli.state import as_its_owner, config_option, state_dir_option, state_folder
from gateway.errors import StateUnwritable
from gateway.private_files import private_folder
from gateway.stores.keys import KeyStore, Role, check_shape, load_pepper, new_token

_DAY_US = 86_400 * 1_000_000


@click.group()
def key() -> None:
    """Create, list and revoke keys."""


@key.command()
@click.option("--tenant", help="Who pays. Needed for an API key.")
@click.option("--project", default="default", show_default=True)
@click.option("--name", required=True, help="What it is for; shown in lists.")
@click.option(
    "--admin-role",
    type=click.Choice(["viewer", "finance", "operator", "admin"]),
    help="Make an admin key (tha_) with this role instead of an API key (th_).",
)
@click.option("--days", type=click.IntRange(1, 3650), help="Expires after so many days.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--offline",
    is_flag=True,
    help="Write into the state folder instead of asking the gateway, which need not run.",
)
@state_dir_option
@config_option
@admin_options
def create(
    tenant: str | None,
    project: str,
    name: str,
    admin_role: Role | None,
    days: int | None,
    as_json: bool,
    offline: bool,
    state_dir: Path | None,
    config: Path | None,
    admin_url: str,
    admin_key: str | None,
) -> None:
    """Make a key. Its text is shown this once and kept nowhere.

    With --offline it needs no admin key, but to be the user that owns the state folder: so a lost
    admin key is replaced. A running gateway knows the new key within a second. Whether the policy
    has the tenant is not looked at.
    """
    expires_us = None if days is None else time.time_ns() // 1000 + days * _DAY_US
    if offline:
        folder = state_folder(state_dir, config)
        made = _create_offline(folder, tenant, project, name, admin_role, expires_us)
        click.echo(json.dumps(made) if as_json else made["token"])
        return
    body: dict[str, Any] = {
        "kind": "api" if admin_role is None else "admin",
        "name": name,
        "tenant": tenant,
        "project": project,
    }
    if admin_role is not None:
        body["role"] = admin_role
    if expires_us is not None:
        body["expires_us"] = expires_us
    made = AdminApi(admin_url, admin_key).call("POST", "/admin/keys", body)
    click.echo(json.dumps(made) if as_json else made["token"])


def _create_offline(
    folder: Path,
    tenant: str | None,
    project: str,
    name: str,
    role: Role | None,
    expires_us: int | None,
) -> dict[str, Any]:
    """Make a key in a state folder; the answer that the gateway would give."""
    if role is None and tenant is None:
        raise click.UsageError("an API key needs --tenant")
    with _open_keys(folder) as keys:
        now_us = time.time_ns() // 1000
        if role is None:
            assert tenant is not None, "it has just been looked at"
            record, token = keys.create_api(tenant, project, name, expires_us, now_us=now_us)
        else:
            record, token = keys.create_admin(role, tenant, name, expires_us, now_us=now_us)
    return {"key": msgspec.to_builtins(record), "token": token}


@key.command(name="hash")
@click.argument("token", required=False)
@state_dir_option
@config_option
def hash_key(token: str | None, state_dir: Path | None, config: Path | None) -> None:
    """Print what a policy file holds of a key: keys[].hash of a tenant.

    TOKEN is an API key (th_...), or - to read it from standard input; without it a new key is made
    and printed before its hash. The hash depends on the pepper of the state folder: gateways that
    share a policy need the same one.
    """
    made = token is None
    if token == "-":  # noqa: S105 - the usual word for standard input
        token = sys.stdin.readline().strip()
    token = new_token("api") if token is None else token
    try:
        check_shape(token, "api")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    with _open_keys(state_folder(state_dir, config)) as keys:
        digest = keys.digest(token)
    if made:
        click.echo(token)
    click.echo(f"hmac-sha256:{digest}")


@contextmanager
def _open_keys(folder: Path) -> Iterator[KeyStore]:
    """The keys of a state folder, which is made where it does not exist.

    A mistyped folder looks like a gateway that has not started yet, so a new pepper is told.
    """
    as_its_owner(folder)
    try:
        private_folder(folder)
        if not (folder / "pepper").exists():
            click.echo(f"note: {folder} had no keys and gets a pepper of its own: only gateways"
                       " that start with it know this key", err=True)  # fmt: skip
        keys = KeyStore(folder / "keys.sqlite", load_pepper(folder / "pepper"))
    except (OSError, RuntimeError, sqlite3.Error) as error:
        raise click.ClickException(f"{folder}: {error}") from None
    try:
        yield keys
    except StateUnwritable as error:
        raise click.ClickException(error.message) from None
    finally:
        keys.close()


@key.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@admin_options
def list_keys(as_json: bool, admin_url: str, admin_key: str) -> None:
    """Every key made at run time. The keys themselves are not kept."""
    found = AdminApi(admin_url, admin_key).call("GET", "/admin/keys")
    if as_json:
        click.echo(json.dumps(found))
        return
    for record in found:
        click.echo(
            f"{record['id']}  {record['kind']:5}  {record.get('tenant_id') or '-':12}"
            f"  {record.get('role') or record['project_id']:10}  {_state(record):22}"
            f"  {record['name']}"
        )


@key.command()
@click.argument("key_id")
@admin_options
def revoke(key_id: str, admin_url: str, admin_key: str) -> None:
    """Revoke a key at once."""
    answer = AdminApi(admin_url, admin_key).call("DELETE", f"/admin/keys/{key_id}")
    click.echo(answer["message"] if answer else f"{key_id} is revoked")


def _state(record: dict[str, Any]) -> str:
    if record.get("revoked_us"):
        return "revoked"
    expires_us = record.get("expires_us")
    if expires_us is None:
        return "live"
    expires = datetime.fromtimestamp(expires_us / 1e6, UTC)
    return f"{'until' if expires > datetime.now(UTC) else 'expired'} {expires:%Y-%m-%d}"
