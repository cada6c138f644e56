"""GPUs by dynamic resource allocation (``gpu.resourceClaim``): what is rendered, and where it is refused. No driver was
tried: the schema is the API's own, the selector is evaluated here."""

from __future__ import annotations

from typing import Any

import cel
import pytest
from kubernetes import client
from pydantic import BaseModel, ValidationError

from tests.support.fake_cluster import OWNER, TASK_APP, FakeCluster
from tests.support.fake_kueue import FakeKueue
from tests.support.jobs import job
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.claims import claim_templates
from visionrl_core.manifests.common import Manifest, Ref
from visionrl_core.manifests.merge import PodDefaults
from visionrl_core.manifests.trainer import trainer_job
from visionrl_core.observed import ClusterRules

CLAIMS: dict[str, Any] = {"inference.gpu": {"resourceClaim": {}}, "trainer.gpu": {"resourceClaim": {}}}
TEMPLATES = [Ref("ResourceClaimTemplate", f"demo-{part}-gpus") for part in ("trainer", "inference")]


def request(changes: dict[str, Any]) -> Manifest:
    """What the trainer's template asks for."""
    template = next(found for found in claim_templates(job(changes), OWNER) if "trainer" in found["metadata"]["name"])
    [found] = template["spec"]["spec"]["devices"]["requests"]
    return dict(found["exactly"])


def test_each_component_with_a_gpu_has_a_template_that_its_pods_name() -> None:
    made = {found["metadata"]["name"]: found for found in all_manifests(job(CLAIMS), 0, OWNER, "key")}
    for part, workload in (("inference", "demo-inference"), ("trainer", "demo-trainer-0")):
        assert made[f"demo-{part}-gpus"]["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid, "it goes with the job"
        pod = made[workload]["spec"]["template"]["spec"]
        assert pod["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": f"demo-{part}-gpus"}]
        resources = pod["containers"][0]["resources"]
        assert resources["claims"] == [{"name": "gpus"}]
        assert "nvidia.com/gpu" not in {**resources["requests"], **resources["limits"]}, "not twice"
        assert "nodeAffinity" not in pod.get("affinity", {}), "the claim chooses the node"
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert "resourceClaims" not in made["demo-taskapp"]["spec"]["template"]["spec"]


def test_a_device_plugin_needs_no_template() -> None:
    assert claim_templates(job({"inference.gpu": {}, "trainer.gpu": {}}), OWNER) == []


def test_a_template_asks_for_so_many_devices_of_a_class() -> None:
    asked = request({"trainer.gpu": {"products": [], "resourceClaim": {"deviceClass": "h200"}}})
    assert asked == {"deviceClassName": "h200", "allocationMode": "ExactCount", "count": 1}


@pytest.mark.parametrize(
    ("attributes", "selected"),
    [
        ({"gpu.nvidia.com": {"productName": "NVIDIA H100 80GB HBM3"}}, True),
        ({"gpu.nvidia.com": {"productName": "NVIDIA H200"}}, True),
        ({"gpu.nvidia.com": {"productName": "NVIDIA H2000"}}, False),
        ({"gpu.nvidia.com": {"type": "gpu"}}, False),
        ({"gpu.nvidia.com": {}}, False),
    ],
)
def test_a_devices_product_is_compared_as_the_node_label_writes_it(attributes: dict[str, Any], selected: bool) -> None:
    asked = request({"trainer.gpu": {"products": ["NVIDIA-H200", "NVIDIA-H100-80GB-HBM3"], "resourceClaim": {}}})
    [selector] = asked["selectors"]

    def replace(text: str, old: str, new: str) -> str:  # of Kubernetes' CEL, and not of this one
        return text.replace(old, new)

    context = {"device": {"attributes": attributes}, "replace": replace}
    assert cel.evaluate(selector["cel"]["expression"], context) is selected


def check(manifest: Manifest) -> None:
    """By the client's model of its kind, which is generated from the API server's own schema: unknown fields, missing
    ones and values of another type raise ``ValidationError``."""
    model: type[BaseModel] = getattr(client, f"V1{manifest['kind']}")
    model.model_validate(manifest, strict=True, by_alias=True, by_name=False)


@pytest.mark.parametrize("changes", [{}, CLAIMS, {"storage.export": {"adapter": "pvc://kept/crafter"}}])
def test_everything_fits_the_schema_of_a_current_kubernetes(changes: dict[str, Any]) -> None:
    for manifest in all_manifests(job(changes), 0, OWNER, "key"):
        check(manifest)


@pytest.mark.parametrize("wrong", [{"count": "1"}, {"selector": []}, {"deviceClassName": None}])
def test_the_schema_refuses_what_does_not_fit(wrong: Manifest) -> None:
    [template, _] = claim_templates(job(CLAIMS), OWNER)
    template["spec"]["spec"]["devices"]["requests"][0]["exactly"] |= wrong
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        check(template)


def test_templates_are_made_once_and_before_the_pods() -> None:
    cluster = FakeCluster(CLAIMS)
    made = [Ref(each["kind"], each["metadata"]["name"]) for each in cluster.reconcile().manifests]
    assert max(made.index(template) for template in TEMPLATES) < made.index(TASK_APP)
    cluster.objects[TEMPLATES[0]]["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] = 2
    assert cluster.decide().manifests == (), "its spec is immutable"
    del cluster.objects[TEMPLATES[0]]
    assert [each["metadata"]["name"] for each in cluster.decide().manifests] == [TEMPLATES[0].name]


def test_a_cluster_that_offers_no_claims_refuses_the_job_in_words() -> None:
    cluster = FakeCluster(CLAIMS, rules=ClusterRules(resource_claims=False))
    cluster.reconcile()
    accepted = cluster.status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "NoResourceClaims")
    assert accepted.message.startswith("spec.inference.gpu.resourceClaim, spec.trainer.gpu.resourceClaim: the cluster")
    assert cluster.objects == {}
    cluster.rules = ClusterRules()
    cluster.reconcile()
    assert TASK_APP in cluster.objects, "and takes it once the cluster does"


def test_kueue_sees_the_claims() -> None:
    cluster = FakeCluster({"queueName": "gpus", **CLAIMS}, kueue=FakeKueue())
    cluster.reconcile()
    assert cluster.workload is not None
    pods = {each["name"]: each["template"]["spec"] for each in cluster.workload["spec"]["podSets"]}
    assert pods["trainer"]["resourceClaims"][0]["resourceClaimTemplateName"] == "demo-trainer-gpus"
    assert pods["trainer"]["containers"][0]["resources"]["claims"] == [{"name": "gpus"}]


def test_a_jobs_own_claims_stand_beside_its_gpus() -> None:
    own = {"name": "nic", "resourceClaimTemplateName": "fast-nics"}
    changes = {**CLAIMS, "overrides.trainer.podTemplate": {"spec": {"resourceClaims": [own]}}}
    pod = trainer_job(job(changes), 0, OWNER, "key", PodDefaults())["spec"]["template"]["spec"]
    assert [claim["name"] for claim in pod["resourceClaims"]] == ["gpus", "nic"]
