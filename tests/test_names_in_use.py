"""Every name that the product defines is used somewhere: what is left over misleads its readers."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("gateway", "local_models")
USERS = (*SOURCES, "tests", "kernels", "deploy", "pyproject.toml")
SUFFIXES = {".py", ".html", ".js", ".toml", ".sh", ".yaml", ""}
# Used by a library, by its name.
CALLED = {
    "click": {"get_command", "format_commands"},
    "llguidance": {"is_tokenizer_wrapper"},
    "jinja2": {"intercepted_binops", "is_safe_attribute", "unsafe_undefined"},
    "msgspec, which reads a file's fields by them": {"intermediate_size", "vocab_size"},
    "pydantic, to refuse a key that comes later": {"max_batch", "judged_misses"},
}


def defined(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes and values; what a decorator registers is used by it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.decorator_list:
                yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def files(name: str) -> Iterator[Path]:
    """A file, or all files below a folder whose text may use a name."""
    place = ROOT / name
    for path in [place] if place.is_file() else place.rglob("*"):
        if path.is_file() and path.suffix in SUFFIXES and path != Path(__file__):
            yield path


def words_used() -> Counter[str]:
    """How often each word stands in what may use a name."""
    words = Counter[str]()
    for name in USERS:
        for path in files(name):
            words.update(re.findall(r"\w+", path.read_text(errors="replace")))
    return words


def test_no_name_is_defined_and_never_used() -> None:
    """A constant, function, class or field that stands in one place alone is dead."""
    words = words_used()
    called = set().union(*CALLED.values())
    dead = [
        f"{path.relative_to(ROOT)}: {name}"
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        for name in defined(ast.parse(path.read_text()))
        if words[name] == 1 and not name.startswith("__") and name not in called
    ]
    assert not dead, "\n".join(dead)


def test_every_exemption_is_needed() -> None:
    """One that is gone from the product, or is used by name after all, leaves the list."""
    words = words_used()
    needless = [name for names in CALLED.values() for name in names if words[name] != 1]
    assert not needless
