"""Requests of the reference system's client."""

from __future__ import annotations

from typing import Any

import pytest

from visionrl.rollout import RolloutRequest
from visionrl_taskapp.server.validation import RequestError, parse_request, unused_fields

LEAST: dict[str, Any] = {"run_id": "r", "mode": "eval", "policy": {"policy_name": "crafter-scripted"}}


def test_what_it_leaves_open_is_the_default() -> None:
    """Its models write every optional field."""
    nothing: dict[str, Any] = {"env_id": None, "env_name": None, "config": {}, "seed": None}
    request = {
        **LEAST,
        "env": nothing,
        "policy": {"policy_id": None, **LEAST["policy"]},
        "training_session_id": None,
        "synth_base_url": None,
    }
    assert parse_request(request) == parse_request(LEAST)
    assert parse_request(request).env.seed == RolloutRequest(run_id="r", mode="eval").env.seed
    assert unused_fields(request) == []


@pytest.mark.parametrize("changes", [{"safety": {"max_ops": None}}, {"policy": {"config": {"temperature": None}}}])
def test_nulls_elsewhere_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        parse_request({**LEAST, **changes})
