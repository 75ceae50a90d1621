"""Which Python runs the gateway: one built without profiles costs markedly more per request."""

import sys
import sysconfig

COSTS_MORE = (
    "this Python was built without profile-guided optimisation: a request costs it 1.3 to 1.6 times"
    " the processor time; Debian's python3, python.org's images and uv's builds have it"
)


def is_profile_guided() -> bool:
    """Whether CPython was compiled with measured profiles, as far as its build's notes tell.

    Debian's build names no option for it, but leaves the compiler's flag for it empty: the flag has
    become part of the others.
    """
    if sys.implementation.name != "cpython":
        return True  # its compiler measures while it runs
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flag = sysconfig.get_config_var("PGO_PROF_USE_FLAG")
    return "--enable-optimizations" in options or not flag
