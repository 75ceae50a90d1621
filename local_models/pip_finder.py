"""Ask this machine's pip where wheels are, without downloading them.

    python -m local_models.pip_finder NAME==VERSION ...

Prints a JSON list of addresses, null for a wheel that no index has. Run as a process of its own: it
uses pip's inner classes, because ``pip install --dry-run --report`` downloads every wheel to find
it (1.1 GB more for 22 of them; this: 25 KB in 4 s; pip 23.2 and 26.3). Exit status 3 where pip has
no such classes any more.
"""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

NO_SUCH_PIP = 3


def find(requirements: list[str]) -> list[str | None]:
    """Address of each ``NAME==VERSION`` by pip's own settings; None where no index has a wheel."""
    from pip._internal.cli.cmdoptions import make_target_python
    from pip._internal.commands import create_command
    from pip._vendor.packaging.specifiers import SpecifierSet

    command = create_command("index")
    options, _ = command.parse_args(["versions", "--only-binary", ":all:", "any"])
    session = command._build_session(options)  # type: ignore[attr-defined] # of the index command
    finder = command._build_package_finder(  # type: ignore[attr-defined] # of the index command
        options=options,
        session=session,
        target_python=make_target_python(options),
        ignore_requires_python=False,
    )
    found: list[str | None] = []
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        best = finder.find_best_candidate(name, SpecifierSet(f"=={version}")).best_candidate
        url = None if best is None else str(best.link.url_without_fragment)
        found.append(None if url is None else _with_password(url, session.auth))
    return found


def _with_password(url: str, auth: Callable[[Any], Any]) -> str:
    """The address with the user and password that pip would send there, if any."""
    from pip._vendor.requests.models import Request

    if not url.startswith(("http://", "https://")):
        return url
    request = Request("GET", url).prepare()  # type: ignore[no-untyped-call] # pip has no types here
    kind, _, word = auth(request).headers.get("Authorization", "").partition(" ")
    if kind != "Basic":
        return url
    user, _, password = base64.b64decode(word).decode("latin-1").partition(":")
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


def main() -> int:
    """Print where the wheels of the command line are; the exit status."""
    try:
        found = find(sys.argv[1:])
    except (ImportError, AttributeError, TypeError):
        return NO_SUCH_PIP
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
