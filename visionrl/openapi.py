"""The rollout contract as an OpenAPI document: ``python -m visionrl.openapi > docs/rollout.openapi.json``.

Every task app of ours serves it at ``/openapi.json``; docs/rollout.md says in words what a schema cannot.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from visionrl.rollout import RolloutRequest, RolloutResponse

Schema = dict[str, Any]

PROBLEMS: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
TASK_INFO: Schema = {
    "type": "object",
    "required": ["environment", "action_space"],
    "properties": {
        "environment": {"type": "string", "description": "What jobs name as rollout.envName."},
        "action_space": {
            "type": "object",
            "required": ["actions"],
            "properties": {"actions": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
        },
        "deterministic": {
            "type": "boolean",
            "default": True,
            "description": "Whether the same seed and actions give the same frames and states.",
        },
        "scores": {"type": "array", "items": {"type": "object"}, "description": "The first is the return."},
    },
}


def document() -> Schema:
    """The whole document."""
    names, definitions = models_json_schema(
        [(RolloutRequest, "validation"), (RolloutResponse, "serialization")],
        by_alias=False,
        ref_template="#/components/schemas/{model}",
    )
    request, response = names[RolloutRequest, "validation"], names[RolloutResponse, "serialization"]
    refused = {code: _answer(text, PROBLEMS) for code, text in _REFUSALS.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VisionRL rollout",
            "version": "1",
            "description": "What a task app answers. docs/rollout.md has the rules that a schema cannot say.",
        },
        "security": [{"key": []}],
        "paths": {
            "/health": {
                "get": {
                    "summary": "Whether episodes can be played; 200 when ready, 503 before.",
                    "security": [],
                    "responses": {"200": {"description": "Ready."}, "503": {"description": "Not ready yet."}},
                }
            },
            "/task_info": {
                "get": {
                    "summary": "What is played.",
                    "responses": {"200": _answer("The environment.", TASK_INFO), "401": refused["401"]},
                }
            },
            "/rollout": {
                "post": {
                    "summary": "Play one episode and answer with its trajectory. Idempotent by run_id and body.",
                    "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
                    "responses": {"200": _answer("The episode, also one that was aborted.", response), **refused},
                }
            },
            "/done": {
                "post": {
                    "summary": "The client needs a run no more.",
                    "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
                    "responses": {"200": _answer("Taken.", {"type": "object"})},
                }
            },
        },
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
            "schemas": definitions["$defs"],
        },
    }


_REFUSALS = {
    "400": "The body is no JSON.",
    "401": "No valid key.",
    "409": "The run_id was used for another request.",
    "422": "The request cannot be played; each problem names its field.",
    "424": "The inference server was never reached.",
}


def _answer(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def main() -> None:
    print(json.dumps(document(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
