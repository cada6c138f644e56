"""The contract's OpenAPI document."""

import json
from pathlib import Path

from visionrl import openapi

FILE = Path(__file__).parents[2] / "docs" / "rollout.openapi.json"


def test_the_file_is_the_generated_one() -> None:
    fix = "run python -m visionrl.openapi > docs/rollout.openapi.json"
    assert json.loads(FILE.read_text()) == openapi.document(), fix


def test_every_reference_leads_to_a_schema() -> None:
    text = json.dumps(openapi.document())
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(openapi.document()["components"]["schemas"])
    assert {"RolloutRequest", "RolloutResponse", "Decision"} <= names | set(openapi.document()["components"]["schemas"])
