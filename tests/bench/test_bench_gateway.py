"""The benchmark's own promises: it counts right, notices a wrong answer, and holds its ratchet."""

from pathlib import Path

import pytest

from tests.bench import gateway_prompts as prompts
from tests.bench.gateway_rows import ROWS
from tests.bench.gateway_table import Table, keep, worse
from tests.bench.http_load import drive
from tests.gateway.running import mock_provider

DIRECT, PINNED = ROWS[0], next(row for row in ROWS if row.name == "pinned")


def kept(folder: Path) -> Path:
    """A file with figures of a pinned row and of a direct one."""
    file = folder / "gateway.json"
    figures: Table = {
        "pinned": {
            "requests_per_second": [10_000.0, 9_000.0, 11_000.0],
            "cpu_us_per_request": [60.0, 58.0, 63.0],
        },
        "direct": {"requests_per_second": [60_000.0, 60_000.0, 60_000.0]},
    }
    keep([DIRECT, PINNED], figures, {"peer": "1.0"}, file)
    return file


@pytest.mark.parametrize(
    ("figure", "now"),
    [
        ("cpu_us_per_request", [67.0, 66.5, 70.0]),
        ("requests_per_second", [8_800.0, 8_000.0, 9_900.0]),
    ],
)
def test_a_figure_worse_by_more_than_a_tenth_is_named(
    tmp_path: Path, figure: str, now: list[float]
) -> None:
    """The warning names the row and its best figure now, for CPU time and for throughput alike."""
    (line,) = worse([PINNED], {"pinned": {figure: now}}, kept(tmp_path))
    assert PINNED.title in line
    assert f"{now[0]:,.1f}" in line


@pytest.mark.parametrize(
    ("row", "figure", "now"),
    [
        ("pinned", "cpu_us_per_request", [65.0, 64.0, 66.0]),  # by less than a tenth
        ("pinned", "cpu_us_per_request", [67.0, 59.0, 90.0]),  # one round was as good as ever
        ("pinned", "cpu_us_per_request", [40.0, 39.0, 41.0]),
        ("pinned", "added_p50_us", [900.0, 900.0, 900.0]),  # nothing was kept of it
        ("direct", "requests_per_second", [20_000.0, 20_000.0, 20_000.0]),  # the instrument
    ],
)
def test_what_is_not_clearly_worse_is_let_pass(
    tmp_path: Path, row: str, figure: str, now: list[float]
) -> None:
    """Noise below a tenth, one round as good as ever and unkept figures raise no false alarm."""
    table: Table = {"direct": {}, "pinned": {}} | {row: {figure: now}}
    assert worse([DIRECT, PINNED], table, kept(tmp_path)) == []


def test_rows_not_measured_this_time_keep_their_figures(tmp_path: Path) -> None:
    """A run of one row must not forget the figures of the others."""
    file = kept(tmp_path)
    keep([DIRECT], {"direct": {"requests_per_second": [1.0, 1.0, 1.0]}}, {}, file)
    assert worse([PINNED], {"pinned": {"cpu_us_per_request": [90.0, 90.0, 90.0]}}, file)


def test_requests_differ_only_in_their_number_and_the_repeated_one_in_nothing() -> None:
    """A thousand different requests miss the cache, and the repeated one hits it each time."""
    for make in (prompts.short({}, "m"), prompts.long({}, "m"), prompts.worded({}, "m")):
        made = [make() for _ in range(1_000)]
        assert len(set(made)) == 1_000
        for request in made[:20]:
            head, _, body = request.partition(b"\r\n\r\n")
            assert int(head.rpartition(b"content-length: ")[2]) == len(body)
    again = prompts.repeated({}, "m")
    assert again() == again()


def test_load_counts_whole_answers_and_events_and_stops_at_a_wrong_answer() -> None:
    """A gateway that answers errors fast must not look fast: a 500 stops the measurement."""
    with mock_provider() as base_url:
        port = int(base_url.rpartition(":")[2].partition("/")[0])
        whole = drive(port, prompts.short({}, "m"), connections=4, seconds=0.1)
        assert whole.requests >= len(whole.latencies) > 0
        make = prompts.short({}, "m", stream=True, max_tokens=3)
        streams = drive(port, make, connections=4, seconds=0.1)
        assert streams.events == streams.requests * 4  # three of content and the end
        with pytest.raises(RuntimeError, match="500"):
            drive(port, prompts.short({}, "made-to-fail"), connections=4, seconds=5.0)
        with pytest.raises(RuntimeError, match="expected"):
            drive(port, prompts.short({}, "m"), connections=4, seconds=5.0, mark=b"x-not-there")
