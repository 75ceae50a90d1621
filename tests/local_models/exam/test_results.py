"""Results and what they prove: shipped files belong to this generator and these models."""

from importlib import resources
from pathlib import Path

import pytest

from local_models.catalogue import load_catalogue
from local_models.exam import evidence, report, results
from local_models.exam.detect import DETECTABLE
from local_models.exam.kinds import KINDS
from local_models.exam.statistics import lower_bound
from local_models.exam.task import GENERATOR_VERSION, Form

_FOLDER = resources.files("local_models.exam").joinpath("results")
_SHIPPED = sorted(
    entry.name
    for entry in _FOLDER.iterdir()
    if entry.name.endswith(".json") and entry.name != evidence.DETECTOR_FILE
)


@pytest.mark.parametrize("name", _SHIPPED)
def test_a_shipped_result_is_of_this_generator_and_a_file_of_the_catalogue(name: str) -> None:
    """A change of wordings, verdicts or models makes the counts somebody else's."""
    digests = {
        entry.files["model.gguf"].sha256: model
        for model, entry in load_catalogue().items()
        if "model.gguf" in entry.files
    }
    result = results.decode(_FOLDER.joinpath(name).read_bytes(), _sha256_of(name, digests))
    assert digests[result.sha256] == result.model
    assert result.generator == GENERATOR_VERSION
    assert {*result.kinds} <= {*KINDS}
    for forms in result.kinds.values():
        for counted in forms.values():
            assert counted.strict <= counted.lenient <= counted.tasks
            assert sum(right for _, right in counted.wordings) == counted.lenient
            assert sum(asked for asked, _ in counted.wordings) == counted.tasks


def _sha256_of(name: str, digests: dict[str, str]) -> str:
    return next(digest for digest in digests if results.file_name(digest) == name)


def test_a_proof_is_weaker_than_the_exam_alone() -> None:
    """It may fail by the model or by the detector: half of the error each, product of both."""
    for name in _SHIPPED:
        digest = next(
            entry.files["model.gguf"].sha256
            for entry in load_catalogue().values()
            if "model.gguf" in entry.files
            and results.file_name(entry.files["model.gguf"].sha256) == name
        )
        result = results.shipped(digest)
        assert result is not None
        for form in ("free", "constrained"):
            for kind, proof in evidence.evidence(digest, form).items():
                assert kind in DETECTABLE
                counted = result.kinds[kind][form]
                assert (proof.tasks, proof.right) == (counted.tasks, counted.lenient)
                assert proof.bound <= counted.bound(results.alpha_each())
                assert proof.bound <= evidence.evidence(digest, form, 0.5)[kind].bound


def test_a_file_without_an_exam_proves_nothing() -> None:
    """Another file of the same model is another model."""
    assert results.shipped("0" * 64) is None
    assert evidence.evidence("0" * 64) == {}


def test_the_detectors_test_is_shipped() -> None:
    """Every detectable kind has counts, of this generator, and is right nearly always."""
    measured = evidence.measured()
    assert {*measured.kinds} == DETECTABLE
    for kind, (found, right) in measured.kinds.items():
        assert lower_bound(right, found, results.alpha_each()) > 0.97, kind


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{}", "damaged"),
        (b"[" * 1_000_000, "damaged"),
        (b" " * (results.RESULT_BYTES_MAX + 1), "over"),
    ],
)
def test_a_damaged_result_is_one_sentence(document: bytes, message: str) -> None:
    """Never a traceback, never counts out of nothing."""
    with pytest.raises(results.BadResult, match=message):
        results.decode(document, "0" * 64)


def test_a_model_that_reads_nothing_is_shown_beside() -> None:
    """The best constant answer: half of the yes-or-no questions, nearly no addresses."""
    assert 0.4 <= results.blind("yes_no", 100) <= 0.65
    assert results.blind("extract_email", 100) <= 0.05


def test_an_exam_in_parts_is_kept_as_one(tmp_path: Path) -> None:
    """Another kind or form joins what was there; a newer count of the same takes its place."""

    def part(kind: str, form: Form, right: int, engine: str = "e") -> results.Result:
        count = results.Count(tasks=9, lenient=right, strict=0, wordings=((9, right),))
        return results.Result(
            model="m", sha256="0" * 64, generator=GENERATOR_VERSION, seed=1, day="2026-01-01",
            engine=engine, kinds={kind: {form: count}},
        )  # fmt: skip

    for each in (part("capital", "free", 3), part("capital", "free", 4)):
        path = results.write(each, tmp_path)
    results.write(part("capital", "constrained", 5), tmp_path)
    results.write(part("sentiment", "free", 6), tmp_path)
    whole = results.decode(path.read_bytes(), "0" * 64).kinds
    assert [*whole] == ["sentiment", "capital"]
    assert {form: count.lenient for form, count in whole["capital"].items()} == {
        "free": 4, "constrained": 5,
    }  # fmt: skip
    results.write(part("capital", "free", 7, engine="another"), tmp_path)
    assert [*results.decode(path.read_bytes(), "0" * 64).kinds] == ["capital"]


def test_the_readme_shows_what_is_shipped() -> None:
    """The table of local_models/README.md is the one that the results give."""
    readme = (Path(results.__file__).parents[1] / "README.md").read_text()
    shown = readme.split("<!-- exam: python -m local_models.exam.report -->\n")[1]
    assert shown.split("<!-- end -->")[0] == report.markdown(report.shipped_results())


def test_bold_is_what_is_proven() -> None:
    """126 answers without a mistake are, 125 are not; an empty cell was not asked."""

    def asked(tasks: int, right: int) -> dict[Form, results.Count]:
        wordings = ((tasks, right),)
        return {
            "free": results.Count(tasks=tasks, lenient=right, strict=0, wordings=wordings),
        }

    result = results.Result(
        model="m", sha256="0" * 64, generator=GENERATOR_VERSION, seed=1, day="2026-01-01",
        engine="e", kinds={"capital": asked(126, 126), "element": asked(125, 125)},
    )  # fmt: skip
    table = report.markdown([result])
    assert "| capital | **126 of 126, ≥ 0.950** |" in table
    assert "| element | 125 of 125, ≥ 0.949 |" in table
    assert "| spelling |  |" in table
    assert "| kinds proven | 1 |" in table
    assert "constrained" not in table
