"""Requests that are turned away are in the books, without cost, with their reason."""

import time
from typing import Any

import httpx

from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for

BODY: dict[str, Any] = {"model": "uncached", "messages": [{"role": "user", "content": "Hello"}]}


def post(gateway: RunningGateway, key: str, path: str = "/chat/completions", **changes: Any) -> int:
    return httpx.post(
        gateway.base_url + path,
        json={**BODY, **changes},
        headers={"authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=10,
    ).status_code


def refusals(gateway: RunningGateway, tenant: str) -> dict[str, int]:
    store = LedgerStore(gateway.state_dir / "ledger.sqlite")
    try:
        month = time.strftime("%Y-%m", time.gmtime())
        return {row.reason: row.requests for row in reports.refusals(store, month, tenant)}
    finally:
        store.close()


def test_every_reason_is_counted_for_its_tenant_and_survives_a_kill(
    tmp_path: Any, provider: ProviderThread
) -> None:
    """Over rate and budget, without tags, for a model that is none, malformed, or at the head."""
    with running_gateway(tmp_path, provider.base_url) as gateway:
        tagged, poor, limited = (gateway.key(name) for name in ("tagged", "poor", "limited"))
        assert post(gateway, tagged) == 400
        assert post(gateway, poor, max_tokens=100_000) == 429
        assert post(gateway, poor, model="nothing") == 404
        assert post(gateway, poor, messages=7) == 400
        listed = httpx.get(
            gateway.base_url + "/models/nothing",
            headers={"authorization": f"Bearer {poor}"},
            trust_env=False,
        )
        assert listed.status_code == 404
        assert [post(gateway, limited) for _ in range(4)] == [200, 200, 200, 429]
        assert post(gateway, "th_wrong") == 401
        gateway.kill_worker()
        wait_for(lambda: refusals(gateway, "limited") != {}, 20.0, gateway.describe)
        assert refusals(gateway, "tagged") == {"missing_tags": 1}
        assert refusals(gateway, "limited") == {"rate_limit_exceeded": 1}
        found = refusals(gateway, "poor")
        assert found.pop("insufficient_quota") == 1
        assert found.pop("invalid_request_error") == 1
        assert found.pop("model_not_found") >= 1, (
            "the second of a kind may be lost with the process"
        )
        assert found == {}
        gateway.wait_ready()
        flood = [post(gateway, limited) for _ in range(40)]
        assert flood.count(429) == 37
        assert gateway.stop() == 0
        assert refusals(gateway, "limited") == {"rate_limit_exceeded": 38}
        gateway.start()
