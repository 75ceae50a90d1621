"""The shipped results as README.md has them; ``python -m local_models.exam.report`` prints them."""

from math import floor

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
    """A row per kind, a column per model and form that was asked: right of asked and the lower
    bound, in bold where that proves the kind; then what it comes to.
    """
    asked = [(result, form) for result in results for form in FORMS if _asked(result, form)]
    heads = [f"{result.model}, {form}" for result, form in asked]
    lines = ["| kind | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for kind in KINDS:
        cells = [_cell(result.kinds.get(kind, {}).get(form)) for result, form in asked]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    for name, cell in (("mean over kinds asked", _mean), ("kinds proven", _proven)):
        cells = [cell(result, form) for result, form in asked]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(count: Count | None) -> str:
    if count is None:
        return ""
    bound = count.bound(alpha_each())
    # Rounded down: 0.9499 is not 0.95.
    text = f"{count.lenient} of {count.tasks}, ≥ {floor(1_000 * bound) / 1_000:.3f}"
    return f"**{text}**" if bound >= PROVEN else text


def _asked(result: Result, form: Form) -> list[Count]:
    return [forms[form] for forms in result.kinds.values() if form in forms]


def _mean(result: Result, form: Form) -> str:
    counts = _asked(result, form)
    return f"{sum(count.share for count in counts) / len(counts):.0%} of {len(counts)}"


def _proven(result: Result, form: Form) -> str:
    return str(sum(count.bound(alpha_each()) >= PROVEN for count in _asked(result, form)))


if __name__ == "__main__":
    print(markdown(shipped_results()), end="")
