"""Who may talk to whom: the network policies of a job."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.jobs import job
from tests.support.rendered import OWNER, objects
from visionrl_core.manifests.common import Manifest
from visionrl_core.manifests.network import network_policies


def policies(changes: dict[str, Any]) -> dict[str, Manifest]:
    return {name.name: c for name, c in objects(changes).items() if name.kind == "NetworkPolicy"}


def test_only_the_components_talk_to_each_other_and_the_operator_reads_the_report() -> None:
    found = policies({})
    assert set(found) == {"demo-parts", "demo-report"}
    components = found["demo-parts"]["spec"]
    assert components["policyTypes"] == ["Ingress", "Egress"]
    only_the_job = [{"podSelector": {"matchLabels": {"visionrl.dev/job": "demo"}}}]
    assert [rule["from"] for rule in components["ingress"]] == [only_the_job]
    assert components["egress"][0]["to"] == only_the_job
    assert {port["port"] for port in components["egress"][1]["ports"]} == {53}
    assert found["demo-report"]["spec"]["podSelector"]["matchLabels"]["visionrl.dev/component"] == "trainer"


def test_only_jobs_with_a_model_from_a_hub_reach_out() -> None:
    hub = {"model.base": "Qwen/Qwen3-VL-4B-Instruct"}
    assert policies(hub)["demo-hub"]["spec"]["egress"] == [{"ports": [{"protocol": "TCP", "port": 443}]}]
    assert "demo-hub" not in policies({"model": {"base": "/models/qwen3-vl"}})


@pytest.mark.parametrize(
    ("tracking", "ports"),
    [
        ({"wandb": {"project": "games"}}, [443]),
        ({"wandb": {"project": "games", "mode": "offline"}}, None),
        ({"trackio": {"project": "games", "spaceId": "me/games"}}, [443]),
        ({"mlflow": {"experiment": "games"}}, None),
        ({"mlflow": {"experiment": "games", "trackingUri": "http://mlflow.tools:5000"}}, [5000]),
        ({"mlflow": {"experiment": "games", "trackingUri": "https://mlflow"}, "wandb": {"project": "games"}}, [443]),
    ],
)
def test_the_trainer_reaches_the_trackers_of_its_job(tracking: dict[str, Any], ports: list[int] | None) -> None:
    found = policies({"tracking": tracking})
    assert ("demo-trackers" in found) == (ports is not None)
    if ports:
        spec = found["demo-trackers"]["spec"]
        assert [port["port"] for port in spec["egress"][0]["ports"]] == ports
        assert spec["podSelector"]["matchLabels"]["visionrl.dev/component"] == "trainer"


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://user:key@c", "http://c:99999", "http://c/?key=1", ""])
def test_an_endpoint_that_is_none_is_refused_before_a_policy_is_made_of_it(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="endpoint"):
        job({"tracking.otlp": {"endpoint": endpoint}})


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://collector:4318", 4318), ("https://collector/", 443), ("http://[::1]/x", 80)]
)
def test_all_components_reach_the_collector_of_spans(endpoint: str, port: int) -> None:
    spec = policies({"tracking": {"otlp": {"endpoint": endpoint}}})["demo-spans"]["spec"]
    assert spec["egress"] == [{"ports": [{"protocol": "TCP", "port": port}]}]
    assert spec["podSelector"] == {"matchLabels": {"visionrl.dev/job": "demo"}}


def test_metrics_are_reached_by_those_whom_the_cluster_names() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    names = {name["metadata"]["name"]: name for name in network_policies(job(), OWNER, [monitoring])}
    rule = names["demo-metrics"]["spec"]
    assert rule["ingress"] == [{"from": [monitoring], "ports": [{"protocol": "TCP", "port": 8000}]}]
    assert rule["podSelector"]["matchExpressions"][0]["values"] == ["inference", "trainer"]
    assert "demo-metrics" not in {name["metadata"]["name"] for name in network_policies(job(), OWNER)}
