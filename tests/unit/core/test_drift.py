"""What of a live object is ours, and whether it still is as it was applied."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import job
from visionrl_core.drift import differences
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.common import Manifest, Owner, Ref, ref

MANIFESTS = {ref(m): m for m in all_manifests(job({"inference.gpu": {}}), 0, Owner("demo", "team", "uid-1"), "key")}
INFERENCE, SERVICE = Ref("Deployment", "demo-inference"), Ref("Service", "demo-inference")


def live(name: Ref) -> Any:
    return copy.deepcopy(MANIFESTS[name])


def test_an_object_as_it_was_applied_does_not_differ() -> None:
    for manifest in MANIFESTS.values():
        assert differences(manifest, copy.deepcopy(manifest)) == []


def test_what_the_api_server_and_others_add_is_theirs() -> None:
    found = live(INFERENCE)
    found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "3"
    found["metadata"]["labels"]["team"] = "vision"
    found["spec"]["paused"] = False
    pod = found["spec"]["template"]["spec"]
    pod["dnsPolicy"] = "ClusterFirst"
    pod["containers"].insert(0, {"name": "istio-proxy", "image": "proxy"})
    pod["containers"][1]["imagePullPolicy"] = "IfNotPresent"
    pod["volumes"].append({"name": "injected", "emptyDir": {}})
    for volume in pod["volumes"]:
        if volume.get("emptyDir") == {}:
            volume["emptyDir"] = None
    assert differences(MANIFESTS[INFERENCE], found) == []


def limits(found: Any) -> Any:
    return found["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("applied", "shown", "same"),
    [
        ("1000m", "1", True),
        ("0.5", "500m", True),
        ("1024Mi", "1Gi", True),
        ("1000k", "1M", True),
        ("1.5Gi", "1536Mi", True),
        ("1", "2", False),
        ("1G", "1Gi", False),
        ("1", "one", False),
    ],
)
def test_a_quantity_in_the_servers_own_form_is_the_same(applied: str, shown: str, same: bool) -> None:
    ours, found = live(INFERENCE), live(INFERENCE)
    limits(ours)["memory"], limits(found)["memory"] = applied, shown
    assert (differences(ours, found) == []) is same


def test_what_the_server_leaves_out_because_it_is_empty_is_the_same() -> None:
    ours, found = live(INFERENCE), live(INFERENCE)
    container = "containers"
    for pod, content in ((ours["spec"]["template"]["spec"], {"value": ""}), (found["spec"]["template"]["spec"], {})):
        pod[container][0]["env"].append({"name": "EMPTY", **content})
    assert differences(ours, found) == []


def scaled(found: Any) -> None:
    found["spec"]["replicas"] = 0


def without_label(found: Any) -> None:
    del found["metadata"]["labels"]["visionrl.dev/job"]


def other_image(found: Any) -> None:
    found["spec"]["template"]["spec"]["containers"][0]["image"] = "other"


def no_environment(found: Any) -> None:
    found["spec"]["template"]["spec"]["containers"][0]["env"] = []


def nobodys(found: Any) -> None:
    found["metadata"]["ownerReferences"] = []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (scaled, "spec.replicas"),
        (without_label, "metadata.labels.visionrl.dev/job"),
        (other_image, "spec.template.spec.containers[inference].image"),
        (no_environment, "spec.template.spec.containers[inference].env[VISIONRL_JOB]"),
        (nobodys, "metadata.ownerReferences[demo]"),
    ],
)
def test_what_somebody_changed_is_named(change: Any, path: str) -> None:
    found = live(INFERENCE)
    change(found)
    assert differences(MANIFESTS[INFERENCE], found)[0] == path


def test_a_further_label_in_a_selector_selects_something_else() -> None:
    found = live(SERVICE)
    found["spec"]["selector"]["canary"] = "true"
    assert differences(MANIFESTS[SERVICE], found) == ["spec.selector"]


leaves = st.sampled_from(sorted(MANIFESTS))


@given(leaves, st.data())
def test_every_changed_value_is_found(name: Ref, data: st.DataObject) -> None:
    manifest: Manifest = MANIFESTS[name]
    found = live(name)
    parent, key = found, "metadata"
    content = [key for key in found if key not in ("apiVersion", "kind")]
    key = data.draw(st.sampled_from(sorted(content)))
    path = [key]
    while isinstance(parent[key], dict | list) and parent[key]:
        parent = parent[key]
        keys = sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if path == ["metadata"]:
            keys = [name for name in keys if name not in ("name", "namespace")]
        key = data.draw(st.sampled_from(keys))
        path.append(key)
    if parent[key] in ({}, []):
        return
    parent[key] = "another value"
    assert differences(manifest, found), path
