"""``network:`` of a provider: what is taken, and what is refused at load time, with its place."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.errors import PolicyError
from gateway.policy.load import load_policy
from gateway.policy.snapshot import Policy, Proxy
from tests.certificates import Authority
from tests.gateway.policy.policy_texts import ENVIRON, NOW_US, POLICY

URL = "    base_url: https://api.example.com/v1\n"
PASSWORD = "canary-of-the-proxy"


def load(
    folder: Path, network: str, environ: Mapping[str, str] = ENVIRON, url: str = URL
) -> Policy:
    file = folder / "policy.yaml"
    file.write_text(POLICY.replace(URL, f"{url}    network: {{{network}}}\n"))
    return load_policy([file], environ=environ, now_us=NOW_US)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_all_of_it_arrives_at_the_provider(tmp_path: Path, authority: Authority) -> None:
    """Proxy, authority and client certificate are read, and no secret of them shows in a repr."""
    certificate, key = authority.issue("client")
    environ = {**ENVIRON, "PROXY": f"http://us%40er:{PASSWORD}@proxy.corp:3128/"}
    policy = load(
        tmp_path,
        f'proxy: "${{env:PROXY}}", ca_file: {authority.certificate},'
        f' client_cert: "${{file:{certificate}}}", client_key: "${{file:{key}}}"',
        environ,
    )
    network = policy.providers["big"].network
    assert network.proxy is not None
    assert (network.proxy.host, network.proxy.port) == ("proxy.corp", 3128)
    assert network.ca_pem.strip() == authority.certificate.read_text().strip()
    assert network.client_pem is not None
    assert network.client_pem.reveal().count("BEGIN") == 2
    shown = repr(policy.providers["big"])
    assert PASSWORD not in shown
    assert "PRIVATE KEY" not in shown


def test_certificate_and_key_may_be_one_file(tmp_path: Path, authority: Authority) -> None:
    """Many tools issue them as one PEM, which works as client_cert without a client_key."""
    both = tmp_path / "mtls.pem"
    both.write_text("".join(path.read_text() for path in authority.issue("client")))
    assert load(tmp_path, f'client_cert: "${{file:{both}}}"').providers["big"].network.client_pem


def test_a_proxy_without_a_password_may_stand_in_the_file(tmp_path: Path) -> None:
    """An address alone is no secret, so it needs no reference; IPv6 in brackets works."""
    network = load(tmp_path, 'proxy: "http://[::1]:3128"').providers["big"].network
    assert network.proxy == Proxy(host="::1", port=3128)


def test_a_proxys_password_does_not_change_the_policys_version(tmp_path: Path) -> None:
    """A rotated password is no edit of the policy, and the version tells nothing of it."""
    versions = {
        load(tmp_path, 'proxy: "${env:PROXY}"', {**ENVIRON, "PROXY": f"http://u:{p}@h:1"}).version
        for p in ("one", "two")
    }
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("network", "place", "message"),
    [
        ("proxy: «proxy.corp", "proxy", "a proxy reads http://[user:password@]host:port"),
        ("proxy: «http://proxy.corp", "proxy", "a proxy reads http://"),
        ("proxy: «http://proxy.corp:3128/x", "proxy", "a proxy reads http://"),
        ("proxy: «http://proxy.corp:99999", "proxy", "a proxy reads http://"),
        ("proxy: «socks5://proxy.corp:1080", "proxy", "a proxy reads http://"),
        ("proxy: «https://proxy.corp:3128", "proxy", "over plain HTTP"),
        ("proxy: «http://169.254.169.254:80", "proxy", "never connects to 169.254.169.254"),
        (f"proxy: «http://u:{PASSWORD}@proxy.corp:3128", "proxy", "with a password is a reference"),
        ('proxy: «"${env:BAD}"', "proxy", "a proxy reads http://"),
        ("ca_file: «ca.pem", "ca_file", "a ca_file is an absolute path"),
        ("ca_file: «/no/such/file.pem", "ca_file", "cannot be read: No such file or directory"),
        ("ca_file: «EMPTY", "ca_file", "holds no certificate in PEM"),
        ("ca_file: «BROKEN", "ca_file", "a certificate cannot be read"),
        ("client_cert: «CLIENT", "client_cert", "certificate and key are a reference"),
        ('client_cert: «"${file:EMPTY}"', "client_cert", "certificate and key are PEM"),
        ('client_cert: «"${file:CLIENT}"', "client_cert", "certificate and key cannot be used"),
        (
            'client_cert: «"${file:CLIENT}", client_key: "${file:OTHER}"',
            "client_cert",
            "cannot be used: key values mismatch",
        ),
        (
            'client_cert: «"${file:CLIENT}", client_key: "${file:LOCKED}"',
            "client_cert",
            "the key is encrypted",
        ),
    ],
)
def test_what_would_fail_at_a_request_is_refused_at_load_time_with_its_place(
    tmp_path: Path, authority: Authority, network: str, place: str, message: str
) -> None:
    """Each mistake is told by file, line and column, and never with the password."""
    files = {
        "EMPTY": "nothing\n",
        "BROKEN": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "CLIENT": authority.issue("client")[0].read_text(),
        "OTHER": authority.issue("other")[1].read_text(),
        "LOCKED": authority.locked("client"),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in files:
        network = network.replace(name, str(tmp_path / name))
    environ = {**ENVIRON, "BAD": f"{PASSWORD}@proxy"}
    with pytest.raises(PolicyError) as caught:
        load(tmp_path, network.replace("«", ""), environ)
    (problem,) = caught.value.problems
    column = 15 + network.index("«")
    assert f"policy.yaml:8:{column}: providers.0.network.{place}: " in problem
    assert message in problem
    assert PASSWORD not in problem


def test_a_key_without_its_certificate_is_refused(tmp_path: Path, authority: Authority) -> None:
    """A forgotten client_cert would otherwise fail at the provider in a TLS alert."""
    key = authority.issue("client")[1]
    with pytest.raises(PolicyError, match="a client_key needs a client_cert"):
        load(tmp_path, f'client_key: "${{file:{key}}}"')


@pytest.mark.parametrize("key", ["ca_file", "client_cert"])
def test_tls_of_ones_own_needs_https(tmp_path: Path, authority: Authority, key: str) -> None:
    """With http the certificate would be ignored in silence and the traffic sent in the clear."""
    values = {"ca_file": f"{authority.certificate}", "client_cert": '"${env:KEY}"'}
    with pytest.raises(PolicyError, match=f"{key} is of use with a base_url of https"):
        load(tmp_path, f"{key}: {values[key]}", url="    base_url: http://api.example.com/v1\n")


def test_the_local_provider_has_no_network(tmp_path: Path) -> None:
    """A proxy for the model in our own process is a misunderstanding, told at load time."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        POLICY.replace("    api: local\n", '    api: local\n    network: {proxy: "http://h:1"}\n')
    )
    with pytest.raises(PolicyError, match="a local provider has no network"):
        load_policy([file], environ=ENVIRON, now_us=NOW_US)
