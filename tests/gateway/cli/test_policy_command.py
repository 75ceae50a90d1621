"""``tollhouse policy`` and ``tollhouse switch``, as an admin types them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli
from tests.gateway.policy.policy_texts import ENVIRON, NOW_US, POLICY, changed


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def run(*arguments: str | Path, **environ: str) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], env=environ)


class AdminPort(HTTPServer):
    """Stands for a gateway's admin port: notes requests, answers what it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, Any, str]] = []
        self.answer: Any = {}
        self.status = 200

    @property
    def options(self) -> tuple[str, ...]:
        return ("--admin-url", f"http://127.0.0.1:{self.server_port}", "--admin-key", "tha_key")


class _Handler(BaseHTTPRequestHandler):
    server: AdminPort

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Any) -> None:
        key = self.headers["authorization"]
        self.server.requests.append((self.command, self.path, body, key))
        content = json.dumps(self.server.answer).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def admin() -> Iterator[AdminPort]:
    with AdminPort() as port:
        thread = threading.Thread(target=port.serve_forever, args=(0.01,))
        thread.start()
        yield port
        port.shutdown()
        thread.join()


def test_a_sound_policy_is_accepted_without_its_secrets(policy_file: Path) -> None:
    """A build machine has none; what is not set is said, and is no problem."""
    result = run("policy", "check", policy_file)
    assert result.exit_code == 0, result.output
    assert "2 models, 3 routes, 1 tenants; no problems" in result.stdout
    assert "the environment variable KEY is not set here" in result.stderr
    assert "not set" not in run("policy", "check", policy_file, **ENVIRON).stderr


def test_an_empty_secret_is_as_good_as_none(policy_file: Path) -> None:
    """Build machines pass a secret they may not show as an empty variable."""
    result = run("policy", "check", policy_file, **{**ENVIRON, "KEY": ""})
    assert result.exit_code == 0, result.output
    assert "the environment variable KEY is not set here" in result.stderr


def test_problems_are_printed_for_people_for_tools_and_for_pull_requests(
    policy_file: Path,
) -> None:
    """Exit status 1 in each format."""
    policy_file.write_text(changed("context: 400k", "context: many"))
    place, message = f"{policy_file}:17:14", "a count reads 400, 400k or 2M, not the text 'many'"
    text = run("policy", "check", policy_file)
    assert (text.exit_code, text.stderr) == (1, f"{place}: models.0.context: {message}\n")
    as_json = run("policy", "check", "--format", "json", policy_file)
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["problems"] == [
        {"file": str(policy_file), "line": 17, "column": 14, "path": "models.0.context",
         "message": message}
    ]  # fmt: skip
    github = run("policy", "check", "--format", "github", policy_file)
    assert github.exit_code == 1
    assert github.stdout == (
        f"::error file={policy_file},line=17,col=14::models.0.context: {message}\n"
    )


def test_what_is_not_measured_is_a_warning_in_every_format(policy_file: Path) -> None:
    """The semantic cache, and a small model chosen by the prior: accepted, and said."""
    text = run("policy", "check", policy_file, **ENVIRON)
    assert text.exit_code == 0
    assert "no problems, 2 warnings" in text.stdout
    semantic, prior = text.stderr.splitlines()
    assert ": routes.0.cache.semantic: not measured" in semantic
    assert semantic.startswith(f"warning: {policy_file}:33:")
    assert prior.startswith(f"warning: {policy_file}:32:51: routes.0.target.until_then: not")
    as_json = run("policy", "check", "--format", "json", policy_file, **ENVIRON)
    assert [warning["line"] for warning in json.loads(as_json.stdout)["warnings"]] == [33, 32]
    github = run("policy", "check", "--format", "github", policy_file, **ENVIRON)
    assert github.exit_code == 0
    assert f"::warning file={policy_file},line=32,col=51::routes.0.target" in github.stdout


def test_a_local_model_that_the_catalogue_lacks_is_a_warning(policy_file: Path) -> None:
    """A slip in its name is said before the model process fails on it, with the name meant."""
    local = "  - {name: spare, api: local, runtime: {model: qwen2.5-coder-0.5b}}\n"
    policy_file.write_text(POLICY.replace("providers:\n", f"providers:\n{local}", 1))
    checked = run("policy", "check", policy_file, **ENVIRON)
    assert checked.exit_code == 0, checked.output
    assert (
        "warning: provider spare: runtime.model: this version's catalogue has no model"
        " 'qwen2.5-coder-0.5b'; did you mean 'qwen2.5-coder-0.5b-instruct'?"
    ) in checked.stderr
    policy_file.write_text(policy_file.read_text().replace("coder-0.5b}", "coder-0.5b-instruct}"))
    assert "catalogue" not in run("policy", "check", policy_file, **ENVIRON).stderr


def test_a_request_is_explained_from_its_body(policy_file: Path, tmp_path: Path) -> None:
    """Model, tools and length come from the file; tags from the command line."""
    request = tmp_path / "request.json"
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "tools": [{}]}
    request.write_text(json.dumps(body))
    result = run("policy", "explain", policy_file, "--tenant", "acme", "--tag", "feature=support",
                 "--request", request)  # fmt: skip
    assert result.exit_code == 0, result.output
    for expected in ("support: taken", "targets   large", "tools go to the large model"):
        assert expected in result.stdout
    as_json = run("policy", "explain", policy_file, "--tenant", "acme", "--json")
    found = json.loads(as_json.stdout)
    assert (found["route"], found["targets"]) == ("rest", ["large"])


def test_an_unknown_tenant_is_not_explained(policy_file: Path) -> None:
    """The nearest one is named."""
    result = run("policy", "explain", policy_file, "--tenant", "amce")
    assert result.exit_code == 1
    assert "there is no tenant 'amce'; did you mean 'acme'?" in result.stderr


def test_the_history_is_read_from_the_state_folder(tmp_path: Path, policy_file: Path) -> None:
    """Newest first, with what is pinned; reading it makes no folder."""
    from gateway.policy.holder import PolicyHolder

    config = tmp_path / "tollhouse.yaml"
    config.write_text(f"policies: [{policy_file}]\nstate_dir: state\n")
    nothing = run("policy", "history", "--config", config)
    assert "no policy has been in force yet" in nothing.stdout
    assert not (tmp_path / "state").exists()
    holder = PolicyHolder(
        [policy_file], state_dir=tmp_path / "state" / "policies", settle_seconds=0.5,
        now_us=lambda: NOW_US, environ=ENVIRON,
    )  # fmt: skip
    first = holder.current.version
    policy_file.write_text(changed('"12.50"', '"13.00"'))
    second = holder.reload().version
    holder.rollback(None)
    lines = run("policy", "history", "--config", config).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [first, second, first]
    assert lines[0].endswith("in force, pinned by a rollback")


def test_rolling_back_asks_the_gateway(admin: AdminPort) -> None:
    """The last but one, a named one, or the files again."""
    admin.answer = {"version": "abc"}
    for arguments in ((), ("v1",), ("--clear",)):
        result = run("policy", "rollback", *arguments, *admin.options)
        assert (result.exit_code, result.stdout) == (0, "policy abc is in force\n")
    assert [request[:3] for request in admin.requests] == [
        ("POST", "/admin/policy/rollback", {"version": None}),
        ("POST", "/admin/policy/rollback", {"version": "v1"}),
        ("POST", "/admin/policy/reload", {}),
    ]
    assert admin.requests[0][3] == "Bearer tha_key"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("semantic", "off", "--for", "1h"), ("semantic", True, 3600)),
        (("semantic", "on"), ("semantic", False, None)),
        (("all-large", "on", "--for", "90s"), ("all-large", True, 90)),
        (("all-large", "off"), ("all-large", False, None)),
        (("local", "off"), ("local", True, None)),
    ],
)
def test_a_switch_is_thrown_as_it_reads(
    admin: AdminPort, arguments: tuple[str, ...], body: tuple[object, ...]
) -> None:
    """Parts are on by default and turned off; all-large is turned on."""
    name, thrown, seconds = body
    admin.answer = {"name": name, "thrown": thrown, "meaning": "something", "until_us": None}
    assert run("switch", *arguments, *admin.options).exit_code == 0
    assert admin.requests[0][:3] == (
        "POST", "/admin/switches", {"name": name, "thrown": thrown, "for_seconds": seconds},
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("switch", "sematic", "off"),
        ("switch", "semantic"),
        ("switch", "semantic", "on", "--for", "1h"),
        ("switch", "semantic", "off", "--for", "soon"),
        ("policy", "rollback", "v1", "--clear"),
        ("policy", "explain"),
        ("policy", "check", "--format", "xml"),
    ],
)
def test_wrong_usage_exits_with_2(admin: AdminPort, arguments: tuple[str, ...]) -> None:
    """And asks no gateway for anything."""
    options = admin.options if arguments[1] not in ("explain", "check") else ()
    assert run(*arguments, *options).exit_code == 2
    assert admin.requests == []


def test_no_gateway_exits_with_3(admin: AdminPort) -> None:
    """So that a script can tell it from a refusal, which is 1."""
    admin.status, admin.answer = 404, {"error": {"message": "there is no earlier policy"}}
    refused = run("policy", "rollback", *admin.options)
    assert (refused.exit_code, refused.stderr) == (1, "there is no earlier policy\n")
    options = ("--admin-url", "http://127.0.0.1:1", "--admin-key", "tha_key")
    assert run("switch", *options).exit_code == 3


def test_a_first_start_with_too_large_a_policy_ends_before_anything_has_begun(
    tmp_path: Path, policy_file: Path
) -> None:
    """One sentence with file, limit and setting; no state folder has been made."""
    config = tmp_path / "tollhouse.yaml"
    config.write_text(
        "policies: [policy.yaml]\nstate_dir: state\nlimits: {policy_file_bytes_max: 1024}\n"
    )
    result = run("serve", "--config", config)
    assert result.exit_code == 1
    assert f"{policy_file}: has " in result.stderr
    assert "limits.policy_file_bytes_max" in result.stderr
    assert not (tmp_path / "state").exists()
