"""A gateway reloads its policy for months: what a load leaves behind would add up."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.policy.policy_texts import POLICY, load

ROOT = Path(__file__).parents[3]
RELOADS = 20
SCRIPT = """
import gc, json, sys
from pathlib import Path
from gateway.policy.load import load_policy

def cycles():
    made = [[] for _ in range(10_000)]
    for one in made:
        one.append(one)
    return made

for _ in range(int(sys.argv[2])):
    alive, dead = cycles(), cycles()
    del dead
    policy = load_policy([Path(sys.argv[1])], environ={"KEY": "k"}, now_us=1)
    del alive
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(json.dumps([gc.get_freeze_count(), pages * 4096 / 1e6]))
"""


def test_a_load_leaves_no_cycles(tmp_path: Path) -> None:
    """The collector does not look at what a load has made, so that nothing of it may need one."""
    text = POLICY + "  - {id: more, tags: {a: b}}\n"
    policy: Any = load(tmp_path, text)
    gc.collect()
    gc.disable()
    try:
        policy = load(tmp_path, text)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert "more" in policy.tenants


@pytest.mark.slow
def test_memory_stays_flat_over_twenty_reloads(tmp_path: Path) -> None:
    """Of 1,000 tenants, beside garbage, and beside cycles that become garbage after the load."""
    tenants = "".join(
        f"  - {{id: t{number}, budgets: [{{name: m, amount: '1'}}]}}\n" for number in range(1_000)
    )
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY + tenants)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file), str(RELOADS)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    frozen, resident_mb = zip(*found, strict=True)
    assert len(found) == RELOADS
    assert max(frozen) < 2.5 * frozen[0], "else all cycles that were alive at a load are there yet"
    assert resident_mb[-1] - resident_mb[RELOADS // 2] < 5.0, resident_mb
