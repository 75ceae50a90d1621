"""``tollhouse key``: create, list and revoke keys, through the admin interface."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import click

from gateway.cli.admin_api import AdminApi, admin_options

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
@admin_options
def create(
    tenant: str | None,
    project: str,
    name: str,
    admin_role: str | None,
    days: int | None,
    as_json: bool,
    admin_url: str,
    admin_key: str,
) -> None:
    """Make a key. Its text is shown this once and kept nowhere."""
    body: dict[str, Any] = {
        "kind": "api" if admin_role is None else "admin",
        "name": name,
        "tenant": tenant,
        "project": project,
    }
    if admin_role is not None:
        body["role"] = admin_role
    if days is not None:
        body["expires_us"] = time.time_ns() // 1000 + days * _DAY_US
    made = AdminApi(admin_url, admin_key).call("POST", "/admin/keys", body)
    click.echo(json.dumps(made) if as_json else made["token"])


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
    AdminApi(admin_url, admin_key).call("DELETE", f"/admin/keys/{key_id}")
    click.echo(f"{key_id} is revoked")


def _state(record: dict[str, Any]) -> str:
    if record.get("revoked_us"):
        return "revoked"
    expires_us = record.get("expires_us")
    if expires_us is None:
        return "live"
    expires = datetime.fromtimestamp(expires_us / 1e6, UTC)
    return f"{'until' if expires > datetime.now(UTC) else 'expired'} {expires:%Y-%m-%d}"
