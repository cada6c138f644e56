"""The verbs about jobs against a real API server, with a running operator."""

from __future__ import annotations

import json

import pytest

from tests.cluster.operator_world import World
from tests.cluster.test_operator import kube as kube  # the control plane of the operator's tests
from tests.cluster.test_operator import world as world
from visionrl_cli import main

pytestmark = pytest.mark.cluster


def test_jobs_are_listed_explained_suspended_resumed_and_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world.kube.kubeconfig))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")

    def visionrl(*words: str) -> str:
        assert main([*words, "--namespace", world.namespace], program="kubectl visionrl") == 0
        return capsys.readouterr().out

    world.apply()
    world.apply({"training.groupSize": 1}, "refused")
    assert "no operator has seen it" in visionrl("explain", "demo")
    with world.operator() as operator:
        operator.wait_ready()
        world.wait(lambda: world.condition("TaskAppReady")["reason"] == "Unschedulable", "the scheduler's answer")
        rows = visionrl("jobs", "list").splitlines()
        assert [row.split()[:2] for row in rows[1:]] == [["demo", "Pending"], ["refused", "Pending"]]
        assert "to do: the cluster has no node that takes pods" in visionrl("explain", "demo")
        world.wait(lambda: world.condition("Accepted", "refused")["status"] == "False", "the refusal")
        assert "spec.training.groupSize" in visionrl("explain", "refused")

        visionrl("jobs", "suspend", "demo")
        world.wait(lambda: world.status()["phase"] == "Suspended", "the suspension")
        visionrl("jobs", "resume", "demo")
        world.wait(lambda: world.status()["phase"] == "Pending", "the resumption")
        visionrl("jobs", "cancel", "demo")
        world.wait(lambda: world.status()["phase"] == "Suspended", "the end of the pods")
        found = json.loads(visionrl("jobs", "get", "demo", "--json"))
        assert found["phase"] == "Cancelled"
        assert "Suspended True (Suspended)" in visionrl("jobs", "timeline", "demo")
