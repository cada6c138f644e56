"""What is trained is not lost without a word: the claim of the run folder, and copies elsewhere."""

from __future__ import annotations

import pytest

from tests.support.fake_cluster import OWNER, FakeCluster, complete, reason, running
from visionrl.status import Copy, JobStatus, Progress, TrainerReport
from visionrl_core.events import events_between
from visionrl_core.manifests.common import Ref
from visionrl_core.manifests.storage import claim_of
from visionrl_core.observed import ExportRun

CLAIM = claim_of(OWNER)


def test_the_claim_of_the_run_folder_is_kept_at_the_end() -> None:
    cluster = complete({})
    assert reason(cluster.status, "ResultKept") == "ClaimMade"
    assert CLAIM in cluster.objects


def test_a_job_that_would_lose_its_result_says_so_when_it_is_accepted() -> None:
    cluster = FakeCluster({"storage.ephemeral": True})
    cluster.reconcile()
    assert CLAIM not in cluster.objects
    assert reason(cluster.status, "ResultKept") == "Ephemeral"
    [event] = [event for event in events_between(JobStatus(), cluster.status) if event.reason == "ValidWithWarnings"]
    assert "is lost with the trainer's pod" in event.message


def test_a_claim_that_is_made_in_a_second_pass_was_not_lost() -> None:
    cluster = FakeCluster()
    cluster.reconcile(writes=1)
    cluster.reconcile()
    assert reason(cluster.decide().status, "ResultKept") == "ClaimMade"


def test_a_lost_claim_is_told_before_another_one_is_made() -> None:
    cluster = running()
    cluster.report = TrainerReport(phase="Training", progress=Progress(iteration=2, total=3))
    cluster.reconcile()
    cluster.deleting = frozenset({CLAIM})
    before = cluster.status
    cluster.reconcile()
    kept = cluster.status.condition("ResultKept")
    assert kept is not None
    assert (kept.status, kept.reason) == ("False", "ClaimDeleting")
    assert "visionrl fetch demo" in kept.message
    assert "ClaimDeleting" in [event.reason for event in events_between(before, cluster.status)]

    del cluster.objects[CLAIM]
    cluster.deleting = frozenset()
    before = cluster.status
    cluster.reconcile(writes=1)
    assert CLAIM not in cluster.objects, "the status comes first"
    [event] = events_between(before, cluster.status)
    assert event.reason == "ClaimLost"
    assert event.message.endswith("and with it 2 iterations; training starts at iteration 0 in a new one")
    cluster.reconcile()
    assert CLAIM in cluster.objects
    cluster.reconcile()
    assert reason(cluster.status, "ResultKept") == "ClaimMadeAnew"
    cluster.wait(3600)
    cluster.reconcile()
    assert reason(cluster.status, "ResultKept") == "ClaimMadeAnew", "for as long as the job lives"


def test_the_claim_goes_at_the_end_where_that_is_wanted() -> None:
    cluster = complete({"storage.retention": {"whenFinished": "Delete"}})
    assert CLAIM not in cluster.objects
    cluster.reconcile()
    assert reason(cluster.status, "ResultKept") == "ClaimDeleted"
    cluster.change({"training.iterations": 9})
    cluster.reconcile()
    assert reason(cluster.status, "Accepted") == "RunFolderGone"


EXPORT = {"storage.export": {"adapter": "s3://bucket/crafter", "secretName": "bucket-keys"}}
COPY = Copy(to="s3://bucket/crafter", digest="0" * 64, bytes=42)


def exporter(cluster: FakeCluster) -> Ref:
    [name] = cluster.exports
    return Ref("Job", name)


def copied(cluster: FakeCluster) -> FakeCluster:
    cluster.exports[exporter(cluster).name] = ExportRun(
        "Succeeded", version="demo-v000003-0a1b2c3d4e5f", copies=(COPY,)
    )
    cluster.reconcile()
    return cluster


def test_a_complete_job_copies_its_policy_and_shows_where_it_lies() -> None:
    cluster = running(EXPORT)
    assert not cluster.exports
    cluster.trainer_ends(0)
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    pod = cluster.objects[exporter(cluster)]["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in str(pod["containers"][0]["resources"])
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}]
    assert (reason(cluster.status, "Exported"), cluster.status.phase) == ("Exporting", "Complete")

    cluster.exports[exporter(cluster).name] = ExportRun(message="PermissionError: Access Denied")
    cluster.reconcile()
    assert cluster.status.reason == "training is complete; Exporting: PermissionError: Access Denied"

    before = cluster.status
    copied(cluster)
    result = cluster.status.result
    assert result is not None
    assert (result.export, result.copies, result.claim) == ("Exported", [COPY], CLAIM.name)
    assert result.version == "demo-v000003-0a1b2c3d4e5f"
    assert [event.reason for event in events_between(before, cluster.status)] == ["Exported"]
    assert cluster.status.reason == "training is complete"
    del cluster.objects[exporter(cluster)]
    cluster.exports.clear()
    assert not cluster.reconcile().manifests, "somebody tidied up: it is not copied again"


def test_a_job_that_fails_copies_nothing() -> None:
    cluster = running({**EXPORT, "failurePolicy.maxRestarts": 0})
    cluster.trainer_ends(1)
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert not cluster.exports
    assert cluster.status.result is not None
    assert cluster.status.result.claim == CLAIM.name, "its checkpoints are there"


def test_copies_come_before_the_end_of_claim_and_job_object() -> None:
    spec = {**EXPORT, "storage.retention": {"whenFinished": "Delete"}, "lifecycle.ttlSecondsAfterFinished": 0}
    cluster = running(spec)
    cluster.trainer_ends(0)
    for _ in range(3):
        cluster.wait(3600)
        cluster.reconcile()
    assert CLAIM in cluster.objects
    assert not cluster.job_deleted
    copied(cluster)
    assert CLAIM not in cluster.objects
    assert cluster.job_deleted


def test_a_copy_that_failed_for_good_is_tried_again_once_its_job_is_deleted() -> None:
    cluster = running(EXPORT)
    cluster.trainer_ends(0)
    cluster.reconcile()
    name = exporter(cluster).name
    cluster.exports[name] = ExportRun("Failed", "PermissionError: Access Denied")
    cluster.reconcile()
    assert reason(cluster.status, "Exported") == "ExportFailed"
    assert not cluster.reconcile().manifests
    cluster.objects.pop(Ref("Job", name))
    cluster.exports.clear()
    cluster.reconcile()
    assert reason(cluster.status, "Exported") == "Exporting"
    assert exporter(cluster).name == name


def test_another_destination_is_another_copy() -> None:
    cluster = running(EXPORT)
    cluster.trainer_ends(0)
    cluster.reconcile()
    first = exporter(copied(cluster))
    cluster.change({"storage.export": {"adapter": "pvc://results/crafter"}})
    assert cluster.reconcile().deletions == (first,)
    assert exporter(cluster) != first
    assert "results/crafter" in cluster.objects[Ref("ConfigMap", "demo-config")]["data"]["job.json"]
    mounts = cluster.objects[exporter(cluster)]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "/var/lib/visionrl/export/results" in [mount["mountPath"] for mount in mounts]


@pytest.mark.parametrize("writes", range(6))
def test_killed_after_any_write_of_an_export_it_ends_alike(writes: int) -> None:
    cluster = running(EXPORT)
    cluster.trainer_ends(0)
    cluster.reconcile(writes)
    cluster.reconcile()
    cluster.exports[exporter(cluster).name] = ExportRun("Succeeded", copies=(COPY,))
    cluster.reconcile(writes)
    cluster.reconcile()
    assert reason(cluster.status, "Exported") == "Exported"
    assert len(cluster.exports) == 1
    assert not cluster.reconcile().manifests
