"""Settings: one file, variables over it, and everything wrong in words at its place."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.config import DEFAULT_POLICIES, Limits, Settings, load_settings, override_names
from gateway.errors import PolicyError

HOME = {"XDG_STATE_HOME": "/var/state"}


def write(folder: Path, text: str) -> Path:
    path = folder / "tollhouse.yaml"
    path.write_text(text)
    return path


def refusals(path: Path, **environ: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_settings(path, environ=environ)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def test_without_a_file_everything_has_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loopback, the XDG state home, the embedded policy."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ=HOME)
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.1", 8080)
    assert (settings.admin.host, settings.admin.port) == ("127.0.0.1", 8081)
    assert settings.state_dir == Path("/var/state/tollhouse")
    assert settings.policies == [DEFAULT_POLICIES]
    assert settings.workers == 1


def test_the_file_is_the_one_named_then_the_variable_s_then_the_working_directory_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "drain_seconds: 1")
    (tmp_path / "a.yaml").write_text("drain_seconds: 2")
    (tmp_path / "b.yaml").write_text("drain_seconds: 3")
    assert load_settings(environ=HOME).drain_seconds == 1
    named = HOME | {"TOLLHOUSE_CONFIG": str(tmp_path / "a.yaml")}
    assert load_settings(environ=named).drain_seconds == 2
    assert load_settings(tmp_path / "b.yaml", environ=named).drain_seconds == 3


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    """Wherever the gateway is started."""
    path = write(tmp_path, "policies: [rules, /etc/more.yaml]\nstate_dir: state\nmodels_dir: m\n")
    settings = load_settings(path, environ={})
    assert settings.policies == [tmp_path / "rules", Path("/etc/more.yaml")]
    assert settings.state_dir == tmp_path / "state"
    assert settings.models_dir == tmp_path / "m"


def test_a_variable_overrides_the_file(tmp_path: Path) -> None:
    """One per key, typed as in the file; its paths belong to the working directory."""
    path = write(tmp_path, "listen: {port: 1}\nlocal: {enabled: on}\n")
    settings = load_settings(
        path,
        environ={
            "TOLLHOUSE_LISTEN_PORT": "9000",
            "TOLLHOUSE_LISTEN_HOST": "::1",
            "TOLLHOUSE_ACCESS_LOG": "true",
            "TOLLHOUSE_ENVIRONMENT": "1",
            "TOLLHOUSE_LIMITS_WRITE_STALL_SECONDS": "2.5",
            "TOLLHOUSE_POLICIES": os.pathsep.join(["a.yaml", "/b"]),
        },
    )
    assert (settings.listen.host, settings.listen.port) == ("::1", 9000)
    assert settings.access_log is True
    assert settings.environment == "1"
    assert settings.limits.write_stall_seconds == 2.5
    assert settings.policies == [Path.cwd() / "a.yaml", Path("/b")]
    assert settings.local.enabled == "on"


def test_a_redis_password_is_a_reference_or_a_variable_and_is_not_shown(tmp_path: Path) -> None:
    """In a file only ``${env:}`` or ``${file:}`` may bring it."""
    path = write(tmp_path, "redis: {url: 'redis://:${env:REDIS_PASSWORD}@cache/2'}")
    settings = load_settings(path, environ={"REDIS_PASSWORD": "s3cret"})
    assert settings.redis.url == "redis://:s3cret@cache/2"
    assert "s3cret" not in repr(settings)
    settings = load_settings(path, environ={
        "REDIS_PASSWORD": "x", "TOLLHOUSE_REDIS_URL": "rediss://gate:s3cret@other:7000",
    })  # fmt: skip
    assert settings.redis.url == "rediss://gate:s3cret@other:7000"
    (problem,) = refusals(path, REDIS_PASSWORD="s3cret/x")
    assert "this is no URL" in problem
    assert "s3cret" not in problem


def test_a_mirrors_password_is_a_reference_too_and_sources_are_a_list(tmp_path: Path) -> None:
    """A password in the file is refused without being shown, and an unknown source by its name."""
    path = write(tmp_path, "models: {mirror: 'https://u:${env:SECRET}@m/x', sources: []}")
    settings = load_settings(path, environ={"SECRET": "s3cret"})
    assert settings.models.mirror == "https://u:s3cret@m/x"
    assert settings.models.sources == []
    assert "s3cret" not in repr(settings)
    (problem,) = refusals(write(tmp_path, "models: {mirror: 'https://u:s3cret@m/x'}"))
    assert problem.startswith("1:18: models.mirror: a password is a reference")
    assert "s3cret" not in problem
    environ = {
        "TOLLHOUSE_MODELS_SOURCES": "hub, mirror",
        "TOLLHOUSE_MODELS_MIRROR": "https://u:p@m",
    }
    models = load_settings(write(tmp_path, ""), environ=environ).models
    assert (models.mirror, models.sources) == ("https://u:p@m", ["hub", "mirror"])
    off = load_settings(write(tmp_path, ""), environ={"TOLLHOUSE_MODELS_SOURCES": "none"})
    assert off.models.sources == []
    (problem,) = refusals(write(tmp_path, "models: {sources: [usb]}"))
    assert "expected 'mirror', 'hub' or 'parts', not the text 'usb'" in problem


def test_each_setting_has_one_variable() -> None:
    """No two keys share a name, and every leaf has one."""
    names = override_names()
    leaves = sum(
        len(getattr(field.annotation, "model_fields", {"": None}))
        for field in Settings.model_fields.values()
    )
    assert len(names) == len(set(names.values())) == leaves
    assert names["TOLLHOUSE_LIMITS_BODY_BYTES_MAX"] == ("limits", "body_bytes_max")


def test_a_variable_that_is_no_setting_is_refused(tmp_path: Path) -> None:
    """With the nearest that is; those of other parts of the program are let be."""
    path = write(tmp_path, "")
    assert refusals(path, TOLLHOUSE_LISTEN_PRT="1") == [
        "environment TOLLHOUSE_LISTEN_PRT: no such setting; did you mean 'TOLLHOUSE_LISTEN_PORT'?"
    ]
    others = dict.fromkeys(
        ("TOLLHOUSE_MODELS", "TOLLHOUSE_NATIVE", "TOLLHOUSE_ISA", "TOLLHOUSE_ADMIN_KEY",
         "TOLLHOUSE_ADMIN_URL", "TOLLHOUSE_DEMO_BASE_URL"), "x",
    )  # fmt: skip
    load_settings(path, environ=others)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("listen: {prot: 1}", "1:10: listen.prot: unknown key 'prot'; did you mean 'port'?"),
        ("limits:\n  body_byte_max: 1", "2:3: limits.body_byte_max: unknown key 'body_byte_max';"
         " did you mean 'body_bytes_max'?"),
        ("listen: 5", "1:9: listen: expected a mapping of keys, not the number 5"),
        ("listen: {port: 65536}",
         "1:16: listen.port: must be at most 65535, not the number 65536"),
        ("access_log: no", "1:13: access_log: expected true or false, not the text 'no';"
         " write false"),
        ("durability: powr", "1:13: durability: expected 'process' or 'power', not the text 'powr';"
         " did you mean 'power'?"),
        ("limits: {body_seconds: 0}",
         "1:24: limits.body_seconds: must be more than 0.0, not the number 0"),
        ("workers: 2", "1:10: workers: more than one worker needs Redis: name it under redis:"
         " url, or set workers: 1"),
        ("redis: {url: 'http://cache'}",
         "1:14: redis.url: a Redis URL begins with redis://, rediss:// (TLS) or unix://"),
        ("redis: {url: 'redis://:secret@cache'}", "1:14: redis.url: a password is a reference,"
         " redis://:${env:NAME}@host, never in the file itself"),
        ("redis: {url: 6379}", "1:14: redis.url: expected a text, not the number 6379; put it in"
         " quotes"),
        ("redis: {prefix: 'a b'}",
         "1:17: redis.prefix: must match ^[a-z0-9-]{1,32}$, not the text 'a b'"),
        ("limits: {body_bytes_max: 32MiB}", "1:26: limits.body_bytes_max: expected a number of"
         " bytes: write 33554432, not the text '32MiB'"),
        ("limits: {body_bytes_max: 1.5 k}", "1:26: limits.body_bytes_max: expected a number of"
         " bytes: write 1500, not the text '1.5 k'"),
        ("drain_seconds: 10m", "1:16: drain_seconds: expected a number of seconds: write 600, not"
         " the text '10m'"),
        ("redis: {timeout_seconds: 50ms}", "1:26: redis.timeout_seconds: expected a number of"
         " seconds: write 0.05, not the text '50ms'"),
        ("local: {hedge: 'on'}",
         "1:16: local.hedge: expected true or false, not the text 'on'; write true"),
        ("local: {enabled: yes}",
         "1:18: local.enabled: expected 'auto', 'on' or 'off', not the text 'yes'; write on"),
        ("replicas: 0", "1:11: replicas: must be at least 1, not the number 0"),
        ("policies: rules", "1:11: policies: expected a list, not the text 'rules'"),
        ("state_dir: 3", "1:12: state_dir: expected a path, not the number 3"),
        ("[1]", "1:1: settings are a mapping of keys"),
        ("{}\n---\n{}", "3:1: settings are one document"),
        ("a: 1\na: 2", "2:1: the key 'a' is given twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_at_its_place(tmp_path: Path, text: str, problem: str) -> None:
    """file:line:column, the key, what was expected, what was found."""
    assert refusals(write(tmp_path, text)) == [problem]


def test_a_mistake_in_a_variable_names_the_variable(tmp_path: Path) -> None:
    """The file is not to blame."""
    path = write(tmp_path, "listen: {port: 1}")
    (problem,) = refusals(path, TOLLHOUSE_LISTEN_PORT="many")
    assert problem == (
        "environment TOLLHOUSE_LISTEN_PORT: expected a whole number, not the text 'many'"
    )
    (problem,) = refusals(write(tmp_path, "listen: 5"), TOLLHOUSE_LISTEN_PORT="1")
    assert problem.startswith("1:9: listen: expected a mapping")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Named on purpose, it is wanted."""
    assert refusals(tmp_path / "none.yaml") == [" cannot be read: No such file or directory"]


def test_every_limit_has_a_maximum_that_is_one() -> None:
    """A default within its own range, and an explanation."""
    Limits.model_validate(Limits().model_dump())
    for name, field in Limits.model_fields.items():
        assert field.description, name
        assert name.endswith(("_max", "_seconds", "_bytes")), name


def test_what_tools_of_yaml_1_1_write_back_is_understood(tmp_path: Path) -> None:
    """They read on and off as booleans, and Helm writes a million as 1e+06."""
    for written, meant in (("on", "on"), ("true", "on"), ("off", "off"), ("False", "off")):
        settings = load_settings(write(tmp_path, f"local: {{enabled: {written}}}"), environ={})
        assert settings.local.enabled == meant, written
        variable = {"TOLLHOUSE_LOCAL_ENABLED": written}
        assert load_settings(write(tmp_path, ""), environ=variable).local.enabled == meant
    path = write(tmp_path, "limits: {body_bytes_max: 1e+06, header_count_max: 50.0}")
    limits = load_settings(path, environ={}).limits
    assert (limits.body_bytes_max, limits.header_count_max) == (1_000_000, 50)


def test_any_file_loads_or_is_a_policy_error(tmp_path: Path) -> None:
    """No other exception leaves the loader, whatever the file says."""

    @hypothesis_settings(max_examples=200, deadline=None)
    @given(st.text(max_size=200))
    def try_text(text: str) -> None:
        path = tmp_path / "any.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(PolicyError):
            load_settings(path, environ={})

    try_text()
