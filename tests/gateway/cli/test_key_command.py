"""``tollhouse key`` without an admin key: offline, for policy files, and the first one of all."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway.cli.keys import key
from gateway.stores.keys import KeyStore, load_pepper, new_token
from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway, wait_for

UNSET = {"TOLLHOUSE_ADMIN_KEY": None, "TOLLHOUSE_ADMIN_KEY_FILE": None}


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner(env=UNSET).invoke(key, [str(part) for part in arguments], input=stdin)


def models(gateway: RunningGateway, token: str) -> int:
    """The status that this API key gets."""
    headers = {"authorization": f"Bearer {token}"}
    return httpx.get(gateway.base_url + "/models", headers=headers, trust_env=False).status_code


def admin(gateway: RunningGateway, token: str) -> int:
    """The status that this admin key gets."""
    headers = {"authorization": f"Bearer {token}"}
    return httpx.get(
        gateway.admin_url + "/admin/keys", headers=headers, trust_env=False
    ).status_code


def test_a_key_made_offline_is_known_to_the_store(tmp_path: Path) -> None:
    """In a folder that no gateway has used yet, too; it may be mistyped, so that is said."""
    made = run(
        "create", "--offline", "--state-dir", tmp_path / "s", "--tenant", "acme", "--name", "n"
    )
    assert made.exit_code == 0, made.output
    assert "had no keys and gets a pepper of its own" in made.stderr
    again = run(
        "create", "--offline", "--state-dir", tmp_path / "s", "--tenant", "a", "--name", "n"
    )
    assert again.stderr == ""
    keys = KeyStore(tmp_path / "s" / "keys.sqlite", load_pepper(tmp_path / "s" / "pepper"))
    record = keys.authenticate(made.stdout.strip(), "api", 1)
    keys.close()
    assert record is not None
    assert (record.tenant_id, record.name) == ("acme", "n")
    mode = stat.S_IMODE((tmp_path / "s" / "keys.sqlite").stat().st_mode)
    assert mode == 0o600


def test_without_a_key_and_without_offline_the_command_says_what_it_needs() -> None:
    """An operator without any key reads that one is needed, and gets exit status 2."""
    refused = run("list")
    assert refused.exit_code == 2
    assert "an admin key is needed" in refused.output


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of another user")
def test_a_folder_of_another_user_is_left_alone(tmp_path: Path) -> None:
    """The gateway could not read what another user had written there."""
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 65534, -1)
    refused = run("create", "--offline", "--state-dir", tmp_path, "--tenant", "a", "--name", "n")
    assert refused.exit_code == 1
    assert "belongs to user id 65534" in refused.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_lost_admin_key_is_replaced_while_the_gateway_runs(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """The owner of the state folder gets back in within five seconds and without a restart."""
    with running_gateway(tmp_path, provider.base_url) as gateway:
        made = run(
            "create", "--offline", "--config", gateway.config, "--admin-role", "admin",
            "--name", "way back",
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        token = made.output.strip()
        wait_for(lambda: admin(gateway, token) == 200, 5.0)


@pytest.mark.slow
def test_a_hash_from_the_command_opens_the_gateway_from_a_policy_file(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """For a new key and for one that exists already."""
    gateway = RunningGateway(tmp_path, provider.base_url)
    new = run("hash", "--config", gateway.config)
    token, digest = new.output.split()
    old = new_token("api")
    again = run("hash", "-", "--config", gateway.config, stdin=old + "\n")
    assert re.fullmatch(r"hmac-sha256:[0-9a-f]{64}\n", again.output)
    assert run("hash", old, "--config", gateway.config).output == again.output
    keys = f"{{id: new, hash: '{digest}'}}, {{id: old, hash: '{again.output.strip()}'}}"
    gateway.policy_file.write_text(
        POLICY.replace("{id: globex}", f"{{id: globex, keys: [{keys}]}}")
    )
    gateway.start()
    try:
        assert [models(gateway, known) for known in (token, old, new_token("api"))] == [
            200, 200, 401,
        ]  # fmt: skip
    finally:
        gateway.stop()


@pytest.mark.parametrize("text", ["", "th_short", "tha_" + "x" * 43, "sk-" + "x" * 43])
def test_what_is_no_api_key_has_no_hash(tmp_path: Path, text: str) -> None:
    """An admin key or a foreign key is refused, and the command does not repeat it."""
    refused = run("hash", "-", "--state-dir", tmp_path, stdin=text + "\n")
    assert refused.exit_code == 1
    assert text not in refused.output or not text


def first_start(gateway: RunningGateway, settings: str = "") -> None:
    """Start on an empty folder: no key has been made."""
    for path in gateway.state_dir.iterdir():
        path.unlink()
    with gateway.config.open("a") as config:
        config.write(settings)
    gateway.start()


@pytest.mark.slow
def test_the_first_admin_key_comes_from_a_file_and_is_never_shown(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """An automated installation chooses the key itself and finds no key in its logs."""
    gateway, token = RunningGateway(tmp_path, provider.base_url), new_token("admin")
    file = tmp_path / "admin.key"
    file.write_text(token + "\n")
    gateway.environment["TOLLHOUSE_ADMIN_KEY_FILE"] = str(file)
    first_start(gateway)
    try:
        assert admin(gateway, token) == 200
    finally:
        gateway.stop()
    log = gateway.describe()
    assert token not in log
    assert "tha_" not in log


@pytest.mark.slow
def test_the_first_admin_key_comes_from_a_variable(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """TOLLHOUSE_ADMIN_KEY opens the admin port of a new installation, and no log shows it."""
    gateway, token = RunningGateway(tmp_path, provider.base_url), new_token("admin")
    gateway.environment["TOLLHOUSE_ADMIN_KEY"] = token
    first_start(gateway)
    try:
        assert admin(gateway, token) == 200
    finally:
        gateway.stop()
    assert "tha_" not in gateway.describe()


@pytest.mark.slow
def test_a_key_file_that_does_not_exist_is_written_and_closed_to_others(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """The gateway makes the key itself, with mode 0600, and shows it nowhere else."""
    gateway, file = RunningGateway(tmp_path, provider.base_url), tmp_path / "made.key"
    text = gateway.config.read_text().replace("admin: {port:", "admin: {key_file: made.key, port:")
    gateway.config.write_text(text)
    first_start(gateway)
    try:
        assert admin(gateway, file.read_text().strip()) == 200
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        gateway.stop()
    assert "tha_" not in gateway.describe()


@pytest.mark.slow
def test_a_key_file_with_something_else_in_it_ends_the_start_with_a_sentence(
    tmp_path: Path,
) -> None:
    """The wrong file is named, its contents are not, and there is no traceback."""
    gateway = RunningGateway(tmp_path, "http://127.0.0.1:9/v1")
    for path in gateway.state_dir.iterdir():
        path.unlink()
    file = tmp_path / "admin.key"
    file.write_text("hunter2\n")
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.config)],
        env={**gateway.environment, "TOLLHOUSE_ADMIN_KEY_FILE": str(file)},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "admin.key holds no admin key" in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr
