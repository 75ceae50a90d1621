"""``tollhouse policy`` and ``tollhouse switch``: what admins do with policies.

Checks and explains files without a gateway; what changes a gateway goes through its admin API.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.admin_api import AdminApi, admin_options
from gateway.errors import GatewayError, PolicyError
from gateway.policy.switches import SWITCHES
from gateway.policy.values import duration_seconds
from gateway.yaml_documents import Problem

# For a variable that is not set where files are checked: fits a secret and a base_url.
_FILE_NOT_KNOWN = (
    "which file answers for the small model only its process knows, so no exam counts here"
)
_PLACEHOLDER = "http://not-set.invalid:80"

_config = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="tollhouse.yaml, which names the policy. [default: as for serve]",
)
_paths = click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")


@click.group()
def policy() -> None:
    """Check, explain and roll back policies."""


@policy.command()
@_paths
@_config
@click.option("--format", "form", type=click.Choice(["text", "json", "github"]), default="text")
def check(paths: tuple[Path, ...], config: Path | None, form: str) -> None:
    """Load files and folders as one policy and run its tests; exit 1 where anything is wrong."""
    environ = Placeholders(os.environ)
    try:
        found = _load(paths, config, environ)
    except PolicyError as error:
        _report(error.problems, form)
        sys.exit(1)
    noted = (*found.warnings, *_unknown_models(found))
    counts = {
        "version": found.version,
        "providers": len(found.providers),
        "models": len(found.models),
        "routes": len(found.routes),
        "tenants": len(found.tenants),
    }
    if form == "json":
        warnings = _listed(noted)
        told = {"ok": True, **counts, "not_set": sorted(environ.missing), "warnings": warnings}
        click.echo(json.dumps(told))
        return
    for name in sorted(environ.missing):
        click.echo(f"note: the environment variable {name} is not set here", err=True)
    _tell(noted, form, "warning")
    noticed = f", {len(noted)} warnings" if noted else ""
    click.echo(
        f"policy {found.version}: {counts['models']} models, {counts['routes']} routes,"
        f" {counts['tenants']} tenants; no problems{noticed}"
    )


@policy.command()
@_paths
@_config
@click.option("--tenant", required=True, help="Who asks.")
@click.option("--model", default="auto", show_default=True, help="What is asked for.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag; repeatable.")
@click.option(
    "--request",
    "request_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A chat request as JSON; its model counts where --model is not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def explain(
    context: click.Context,
    paths: tuple[Path, ...],
    config: Path | None,
    tenant: str,
    model: str,
    tags: tuple[str, ...],
    request_file: Path | None,
    as_json: bool,
) -> None:
    """Say which route a request takes, why not the others, and what holds there."""
    from gateway.policy.explain import as_text
    from gateway.policy.explain import explain as explain_request
    from gateway.policy.facts import facts_of
    from gateway.policy.snapshot import RequestFacts
    from gateway.upstreams.local_openai import refusal
    from gateway.yaml_documents import suggest

    try:
        found = _load(paths, config, Placeholders(os.environ))
    except PolicyError as error:
        _report(error.problems, "text")
        sys.exit(1)
    if tenant not in found.tenants:
        raise click.ClickException(f"there is no tenant '{tenant}'{suggest(tenant, found.tenants)}")
    request = _read_request(request_file)
    given = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    all_tags = {**found.tenants[tenant].tags, **_pairs(tags)}
    if request is None:
        facts = RequestFacts(
            tenant=tenant, key="explain", model=model, endpoint="chat", tags=all_tags
        )
        explanation = explain_request(found, facts, lambda route: _judge(route, None))
    else:
        if given:
            request.model = model
        facts = facts_of(request, tenant_id=tenant, key_id="explain", tags=all_tags)
        explanation = explain_request(
            found,
            facts,
            lambda route: _judge(route, request),
            local_refusal=lambda: refusal(request.body, chat=True),
        )
    click.echo(msgspec.json.encode(explanation) if as_json else as_text(explanation))


@policy.command()
@_config
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(config: Path | None, as_json: bool) -> None:
    """The versions that were in force, newest first, from the state folder."""
    from gateway.policy.versions import Versions

    found = Versions(_settings(config).state_dir / "policies").history()
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for number, entry in enumerate(reversed(found.entries)):
        since = datetime.fromtimestamp(entry.since_us / 1e6, UTC)
        notes = ["in force"] if number == 0 else []
        if entry.version == found.pinned:
            notes.append("pinned by a rollback")
        line = f"{entry.version}  {since:%Y-%m-%d %H:%M:%S}Z  {len(entry.files)} files"
        click.echo(f"{line}  {', '.join(notes)}".rstrip())
    if not found.entries:
        click.echo("no policy has been in force yet")


@policy.command()
@click.argument("version", required=False)
@click.option("--clear", is_flag=True, help="End a rollback: put the files in force again.")
@admin_options
def rollback(version: str | None, clear: bool, admin_url: str, admin_key: str) -> None:
    """Return to an earlier VERSION, the last but one by default, until the files change."""
    if clear and version is not None:
        raise click.UsageError("--clear takes no version")
    api = AdminApi(admin_url, admin_key)
    if clear:
        status = api.call("POST", "/admin/policy/reload", {})
    else:
        status = api.call("POST", "/admin/policy/rollback", {"version": version})
    click.echo(f"policy {status['version']} is in force")


@policy.command()
@click.option("--of", "what", type=click.Choice(["policy", "settings"]), default="policy")
@click.option("--markdown", is_flag=True, help="Tables of every option instead, of both.")
def schema(what: str, markdown: bool) -> None:
    """Print the JSON Schema of policies or of tollhouse.yaml, for editors."""
    from gateway.policy.reference import option_tables, policy_schema, settings_schema

    if markdown:
        click.echo(option_tables(), nl=False)
        return
    click.echo(json.dumps(policy_schema() if what == "policy" else settings_schema(), indent=2))


def _duration(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """``90s``, ``10m``, ``1h``, ``2d`` to whole seconds."""
    if value is None:
        return None
    try:
        return max(1, round(duration_seconds(value)))
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None


@click.command()
@click.argument("name", required=False, type=click.Choice(sorted(SWITCHES)))
@click.argument("state", required=False, type=click.Choice(["on", "off"]))
@click.option("--for", "for_seconds", callback=_duration, help="Set back after, such as 1h.")
@admin_options
def switch(
    name: str | None, state: str | None, for_seconds: int | None, admin_url: str, admin_key: str
) -> None:
    """Turn a part off or on at once, without editing a policy; alone, list the switches.

    `switch semantic off --for 1h` silences the semantic cache for an hour; `switch all-large on`
    sends every routed request to the large model.
    """
    api = AdminApi(admin_url, admin_key)
    if name is None:
        for found in api.call("GET", "/admin/switches"):
            click.echo(_standing(found))
        return
    if state is None:
        raise click.UsageError("say on or off")
    # The parts are on by default, all-large is off: thrown is what is not the default.
    thrown = state == ("on" if name == "all-large" else "off")
    if for_seconds is not None and not thrown:
        raise click.UsageError(f"--for goes with the exception; {name} is {state} by default")
    body = {"name": name, "thrown": thrown, "for_seconds": for_seconds}
    click.echo(_standing(api.call("POST", "/admin/switches", body)))


class Placeholders(dict[str, str]):
    """An environment that makes up what is not set or empty, and remembers the names."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__({name: value for name, value in environ.items() if value})
        self.missing: set[str] = set()

    def __missing__(self, name: str) -> str:
        self.missing.add(name)
        return _PLACEHOLDER


def _load(paths: tuple[Path, ...], config: Path | None, environ: Mapping[str, str]) -> Any:
    from gateway.policy.load import FILE_BYTES_MAX, load_policy

    file_bytes_max = FILE_BYTES_MAX
    if config is not None or not paths:
        settings = _settings(config)
        paths = paths or settings.policies
        file_bytes_max = settings.limits.policy_file_bytes_max
    return load_policy(
        paths, environ=environ, now_us=time.time_ns() // 1000, file_bytes_max=file_bytes_max
    )


def _unknown_models(found: Any) -> tuple[str, ...]:
    """Local models that this version's catalogue lacks: accepted, and failed when they load."""
    from gateway.yaml_documents import suggest
    from local_models.catalogue import load_catalogue
    from local_models.messages import DEFAULT

    known = {DEFAULT, *load_catalogue()}
    named = {each.name: each.runtime.model for each in found.providers.values()}
    return tuple(
        f"provider {name}: runtime.model: this version's catalogue has no model"
        f" '{model}'{suggest(model, known)}"
        for name, model in named.items()
        if model and model not in known
    )


def _settings(config: Path | None) -> Any:
    from gateway.config import load_settings

    try:
        return load_settings(config)
    except PolicyError as error:
        _report(error.problems, "text")
        sys.exit(1)


def _report(problems: tuple[str, ...], form: str) -> None:
    if form == "json":
        click.echo(json.dumps({"ok": False, "problems": _listed(problems)}))
    else:
        _tell(problems, form, "error")


def _listed(problems: tuple[str, ...]) -> list[dict[str, Any]]:
    """Problems or warnings, in their parts."""
    keys = ("file", "line", "column", "path", "message")
    return [{key: getattr(problem, key) for key in keys} for problem in map(_placed, problems)]


def _tell(problems: tuple[str, ...], form: str, level: str) -> None:
    """Print problems or warnings, for people or as GitHub's annotations."""
    for p in map(_placed, problems):
        if form == "github":
            message = ": ".join(filter(None, (p.path, p.message)))
            escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
            click.echo(f"::{level} file={p.file},line={p.line},col={p.column}::{escaped}")
        else:
            click.echo(p if level == "error" else f"{level}: {p}", err=True)


def _placed(problem: str) -> Problem:
    return problem if isinstance(problem, Problem) else Problem(problem)


def _read_request(path: Path | None) -> Any:
    if path is None:
        return None
    from gateway.wire.openai import parse_request

    try:
        return parse_request("chat", path.read_bytes())
    except GatewayError as error:
        raise click.ClickException(f"{path}: {error.message}") from None


def _judge(route: Any, request: Any) -> Any:
    """What an exam or the router says of a request; None where only traffic can say it."""
    from gateway.policy.evaluate import unjudged
    from gateway.routing import Router
    from gateway.upstreams.local_evidence import decide_by_exam, named_sha256

    sha256 = named_sha256(route.small)
    if sha256 is None and route.target.until_then == "exam":
        return unjudged(route, _FILE_NOT_KNOWN)
    if request is None or route.target.quality is None:
        return unjudged(route)
    decision = decide_by_exam(sha256 or "", route, request)
    if decision is not None:
        return decision
    router = Router.shipped()
    score = router.score(request.last_user_text or "", uncertain_around=route.target)
    return router.decide(score, route.target)


def _pairs(tags: tuple[str, ...]) -> dict[str, str]:
    pairs = [tag.partition("=") for tag in tags]
    for name, separator, _ in pairs:
        if not separator:
            raise click.UsageError(f"--tag reads NAME=VALUE, not {name!r}")
    return {name: value for name, _, value in pairs}


def _standing(found: dict[str, Any]) -> str:
    if not found["thrown"]:
        return f"{found['name']:10} as the policy says"
    until_us = found.get("until_us")
    until = (
        "until it is set back"
        if until_us is None
        else f"until {datetime.fromtimestamp(until_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}Z"
    )
    return f"{found['name']:10} {found['meaning']}, {until}"
