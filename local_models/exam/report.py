"""The shipped results as README.md has them; ``python -m local_models.exam.report`` prints them."""

from local_models.catalogue import load_catalogue
from local_models.exam.kinds import KINDS
from local_models.exam.results import Count, Result, alpha_each, shipped
from local_models.exam.task import FORMS, Form

PROVEN = 0.95
"""A kind counts as proven where its corrected lower bound reaches this."""


def shipped_results() -> list[Result]:
    """Of the catalogue's models, in its order, those that have one. Raises BadResult."""
    found = [
        shipped(entry.files["model.gguf"].sha256)
        for entry in load_catalogue().values()
        if "model.gguf" in entry.files
    ]
    return [result for result in found if result is not None]


def markdown(results: list[Result]) -> str:
    """A row per kind, a column per model and form: right of asked; then what it comes to."""
    heads = [f"{result.model}, {form}" for result in results for form in FORMS]
    lines = ["| kind | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for kind in KINDS:
        cells = [
            _cell(result.kinds.get(kind, {}).get(form)) for result in results for form in FORMS
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    for name, cell in (("mean over kinds asked", _mean), ("kinds proven", _proven)):
        cells = [cell(result, form) for result in results for form in FORMS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(count: Count | None) -> str:
    return "" if count is None else f"{count.lenient} of {count.tasks}"


def _asked(result: Result, form: Form) -> list[Count]:
    return [forms[form] for forms in result.kinds.values() if form in forms]


def _mean(result: Result, form: Form) -> str:
    counts = _asked(result, form)
    if not counts:
        return ""
    return f"{sum(count.share for count in counts) / len(counts):.0%} of {len(counts)}"


def _proven(result: Result, form: Form) -> str:
    counts = _asked(result, form)
    return str(sum(count.bound(alpha_each()) >= PROVEN for count in counts)) if counts else ""


if __name__ == "__main__":
    print(markdown(shipped_results()), end="")
