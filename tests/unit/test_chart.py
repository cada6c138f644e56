"""What the chart repeats of the rest of the repository says the same."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client.metrics_core import Metric
from ruamel.yaml import YAML

from visionrl.status import Phase, Progress
from visionrl_core.container_images import RELEASED
from visionrl_core.manifests.common import USER
from visionrl_core.manifests.network import OPERATOR_LABELS
from visionrl_operator.metrics import Metrics

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "visionrl"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CRD = "visionrl.dev_visionrljobs.yaml"


def load(name: str) -> Any:
    return YAML(typ="safe").load(CHART / name)


def test_the_charts_definition_is_the_generated_one() -> None:
    same = (CHART / "files" / CRD).read_bytes() == (ROOT / "crds" / CRD).read_bytes()
    assert same, "run: make crds"


def test_chart_and_images_have_the_projects_version() -> None:
    chart = load("Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert set(RELEASED.values()) == {f"visionrl/{part}:{VERSION}" for part in ("taskapp", "inference", "trainer")}


@pytest.mark.parametrize("part", ["operator", "taskapp", "inference", "trainer"])
def test_an_image_runs_as_the_user_that_pods_run_as(part: str) -> None:
    dockerfile = (ROOT / "images" / part / "Dockerfile").read_text()
    assert f"USER {USER}:{USER}\n" in dockerfile
    assert f"--uid {USER} " in dockerfile


def test_jobs_let_the_charts_operator_read_reports() -> None:
    name = OPERATOR_LABELS["app.kubernetes.io/name"]
    assert f"app.kubernetes.io/name: {name}\n" in (CHART / "templates" / "_helpers.tpl").read_text()


def test_the_schema_knows_every_value_and_no_other() -> None:
    def keys(values: Any, schema: Any, path: str = "") -> None:
        if "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, path
        listed = set(schema["properties"]) - {"global"}  # helm adds it
        assert set(values) == listed, path
        for key in listed:
            if values[key] or "properties" in schema["properties"][key]:
                keys(values[key], schema["properties"][key], f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = load("values.yaml")
    values["operator"]["resources"].setdefault("requests", {})
    values["jobPods"]["template"] = {"metadata": {}, "spec": {}}
    keys(values, schema)


def metric_names() -> set[str]:
    """As a scrape shows them."""
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0)
    metrics.watch_phases(lambda: ["Running"])
    families: list[Metric] = list(metrics.registry.collect())
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, ("",))}


def test_the_dashboard_asks_for_metrics_and_phases_that_exist() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = set(re.findall(r"\bvisionrl_operator_\w+", " ".join(queries)))
    assert asked <= metric_names()
    shown = {name.rsplit("_", 1)[0] if re.search("_(bucket|sum|count)$", name) else name for name in asked}
    offered = {re.sub("_(bucket|sum|count)$", "", name) for name in metric_names()}
    assert offered == shown, "a metric that nobody sees"
    of_trainers = set(re.findall(r"\bvisionrl_trainer_(\w+)", " ".join(queries)))
    assert of_trainers <= Progress.model_fields.keys()
    for matched in re.findall(r'phase=~?"([^"]+)"', " ".join(queries)):
        assert set(matched.split("|")) <= set(get_args(Phase))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
