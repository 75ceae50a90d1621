"""Which Python runs the gateway is told from its build's notes."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from gateway.interpreter import is_profile_guided

MODULE = Path(is_profile_guided.__code__.co_filename)
DEBIAN = Path("/usr/bin/python3")


@pytest.mark.parametrize(
    ("options", "flag", "guided"),
    [
        ("'--prefix=/x' '--enable-shared'", "-fprofile-use -fprofile-correction", False),
        ("'--enable-optimizations' '--with-lto'", "-fprofile-use -fprofile-correction", True),
        ("'--enable-shared'", "", True),
    ],
)
def test_a_build_is_known_by_its_notes(
    monkeypatch: pytest.MonkeyPatch, options: str, flag: str, guided: bool
) -> None:
    """pyenv's default, python.org's image and Debian's package, as they describe themselves."""
    notes = {"CONFIG_ARGS": options, "PGO_PROF_USE_FLAG": flag}
    monkeypatch.setattr(sysconfig, "get_config_var", notes.get)
    assert is_profile_guided() is guided


@pytest.mark.skipif(not DEBIAN.exists(), reason="no Python of the distribution is here")
def test_debian_s_python_is_called_fast() -> None:
    """It is, on a Debian: its interpreter reads the module and answers for itself."""
    release = Path("/etc/os-release")
    if not release.exists() or "ID=debian" not in release.read_text():
        pytest.skip("this is no Debian")
    code = f"import runpy; print(runpy.run_path({str(MODULE)!r})['is_profile_guided']())"
    told = subprocess.run([DEBIAN, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "True"
