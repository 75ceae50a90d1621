"""Ask this machine's pip where wheels are, without downloading them.

    python -m local_models.pip_finder NAME==VERSION ...

Prints a JSON list of addresses, null for a wheel that no index has. Run as a process of its own: it
uses pip's inner classes, because ``pip install --dry-run --report`` downloads every wheel to find
it (1.1 GB more for 22 of them; this: 25 KB in 4 s; pip 23.2 and 26.3). Exit status 3 where pip has
no such classes any more.
"""

import json
import sys

NO_SUCH_PIP = 3


def find(requirements: list[str]) -> list[str | None]:
    """Address of each ``NAME==VERSION`` by pip's own settings; None where no index has a wheel."""
    from pip._internal.cli.cmdoptions import make_target_python
    from pip._internal.commands import create_command
    from pip._vendor.packaging.specifiers import SpecifierSet

    command = create_command("index")
    options, _ = command.parse_args(["versions", "--only-binary", ":all:", "any"])
    finder = command._build_package_finder(  # type: ignore[attr-defined] # of the index command
        options=options,
        session=command._build_session(options),  # type: ignore[attr-defined] # as above
        target_python=make_target_python(options),
        ignore_requires_python=False,
    )
    found: list[str | None] = []
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        best = finder.find_best_candidate(name, SpecifierSet(f"=={version}")).best_candidate
        found.append(None if best is None else str(best.link.url_without_fragment))
    return found


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
