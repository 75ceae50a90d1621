"""The way to a provider that is not simply the open net: proxy, own authorities, certificate.

Turns what a policy says into what a connection needs, and finds out at load time what would fail
at request time. Opens no connection.
"""

import functools
import os
import re
import ssl
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from gateway.policy.addresses import never_reached
from gateway.policy.schema import NetworkSection
from gateway.policy.snapshot import Network, Proxy, Secret
from gateway.yaml_documents import read_bounded

CA_BYTES_MAX = 1 << 20
_CERTIFICATES = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)
_CONTEXTS_MAX = 64  # one per provider with TLS of its own, and the default
T = TypeVar("T")


def compile_network(
    written: NetworkSection, *, tls: bool, problem: Callable[[str, str], None]
) -> Network:
    """The way to a provider, found usable: a bad file is a mistake now, not at a request.

    tls: whether the provider is asked over it. ``problem`` hears of each (key, message).
    """

    def tried(key: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ValueError as error:
            problem(key, str(error))
            return None

    proxy, ca_file, client_cert = written.proxy, written.ca_file, written.client_cert
    found = Network()
    if proxy is not None:
        found = replace(found, proxy=tried("proxy", lambda: read_proxy(proxy)))
    if not tls:
        for key in ("ca_file", "client_cert"):
            if getattr(written, key) is not None:
                problem(key, f"{key} is of use with a base_url of https:// only")
        return found
    if ca_file is not None:
        found = replace(found, ca_pem=tried("ca_file", lambda: read_ca(ca_file)) or "")
    if tried("ca_file", lambda: tls_context(found)) is None or client_cert is None:
        return found
    pem = "\n".join((client_cert, written.client_key or "", ""))
    complete = replace(found, client_pem=Secret(pem))
    tried("client_cert", lambda: tls_context(complete))
    return complete


def read_proxy(url: str) -> Proxy:
    """The proxy of ``http://[user:password@]host:port``. Raises ValueError; never repeats it."""
    problem = ValueError("a proxy reads http://[user:password@]host:port")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise problem from None
    if parts.scheme == "https":
        raise ValueError("a proxy is asked over plain HTTP; inside its tunnel TLS is spoken")
    rest = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme != "http" or not parts.hostname or not port or rest:
        raise problem
    if not url.isascii() or not url.isprintable() or set(url) & set(" \\"):
        raise problem
    refused = never_reached(parts.hostname)
    if refused is not None:
        raise ValueError(refused)
    authorization = None
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        if ":" in user:
            raise ValueError("a proxy's user has no colon")
        token = b64encode(f"{user}:{password}".encode()).decode()
        authorization = Secret(f"Basic {token}")
    return Proxy(host=parts.hostname, port=port, authorization=authorization)


def read_ca(name: str) -> str:
    """The certificates of a PEM file. Raises ValueError with a sentence."""
    path = Path(name)
    if not path.is_absolute():
        raise ValueError("a ca_file is an absolute path")
    try:
        text = read_bounded(path, CA_BYTES_MAX).decode("ascii", "replace")
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or error}") from None
    found = _CERTIFICATES.findall(text)
    if not found:
        raise ValueError("the file holds no certificate in PEM")
    return "\n".join(found) + "\n"


@functools.lru_cache(_CONTEXTS_MAX)  # making one takes milliseconds: the loader pays, not a request
def tls_context(network: Network) -> ssl.SSLContext:
    """What a connection with TLS needs: hostnames are checked, always.

    ``ca_pem`` stands instead of the system's authorities. Raises ValueError with a sentence.
    """
    try:
        context = ssl.create_default_context(cadata=network.ca_pem or None)
    except ssl.SSLError as error:
        raise ValueError(f"a certificate cannot be read: {_reason(error)}") from None
    if network.client_pem is not None:
        try:
            _load_client(context, network.client_pem.reveal())
        except ssl.SSLError as error:
            message = f"certificate and key cannot be used: {_reason(error)}"
            raise ValueError(message) from None
    return context


def _load_client(context: ssl.SSLContext, pem: str) -> None:
    """OpenSSL wants a file: one in memory, so that the key touches no disk."""
    if "-----BEGIN " not in pem:
        raise ValueError("certificate and key are PEM")
    descriptor = os.memfd_create("client.pem")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    finally:
        os.close(descriptor)


def _no_password() -> str:
    raise ValueError("the key is encrypted; a gateway has nobody to ask for its password")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "not PEM").replace("_", " ").lower()
