"""What only some clusters have: found when the operator starts, and refused in words where it may not be used."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_api import FakeApi, answer, client, failure
from tests.support.reconciling import DEMO, World
from visionrl_core.kinds import CLAIM_TEMPLATE, Offered
from visionrl_operator import offers
from visionrl_operator.options import Options
from visionrl_operator.watchdog import watched

CLAIMS = {"resource.k8s.io": ["v1", "v1beta1"]}
QUEUES = {"kueue.x-k8s.io": ["v1beta1", "v1beta2"]}


def serving(groups: dict[str, list[str]], forbidden: str = "nothing") -> FakeApi:
    """An API server with these groups; what it does not let the operator list."""
    listed = {"groups": [{"name": g, "versions": [{"version": v} for v in vs]} for g, vs in groups.items()]}

    def discovery(method: str, path: str) -> Any:
        if path.startswith("/apis?") or path == "/apis":
            return answer(200, listed)
        return failure(403, "Forbidden", "no rights") if forbidden in path else answer(200, {"items": []})

    return FakeApi(fault=discovery)


@pytest.mark.parametrize(
    ("server", "kueue", "claims"),
    [
        (serving({}), "", False),
        (serving(CLAIMS), "", True),
        (serving({"resource.k8s.io": ["v1beta2"]}), "", False),
        (serving({**CLAIMS, **QUEUES}), "kueue.x-k8s.io/v1beta2", True),
        (serving({**CLAIMS, **QUEUES}, forbidden="resourceclaimtemplates"), "kueue.x-k8s.io/v1beta2", False),
        (serving({**CLAIMS, **QUEUES}, forbidden="workloads"), "", True),
    ],
)
async def test_what_is_served_and_may_be_read_is_offered(server: FakeApi, kueue: str, claims: bool) -> None:
    found = await offers.find(client(server), Options())
    assert (found.kueue.api_version if found.kueue else "", found.claim_templates) == (kueue, claims)
    assert (CLAIM_TEMPLATE in watched(found)) is claims


async def test_what_appears_later_restarts_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "OFFER_CHECK_SECONDS", 0.0)
    with pytest.raises(offers.MoreIsOffered, match="claims"):
        await offers.more(client(serving(CLAIMS)), Options(), Offered())


async def test_templates_of_claims_are_made_once_and_then_there_is_peace() -> None:
    world = World({"trainer.gpu": {"resourceClaim": {}}})
    await world.settle()
    [template] = world.server.of("resourceclaimtemplates")
    assert template["metadata"]["name"] == "demo-trainer-gpus"
    before = len(world.server.writes)
    world.restart()
    await world.reconciler.reconcile(DEMO)
    assert world.server.writes[before:] == []
