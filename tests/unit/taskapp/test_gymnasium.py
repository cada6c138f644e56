"""Gymnasium's environments: what is promised, how frames are fitted, what is said of those that cannot be played."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from visionrl.job import EnvSettings
from visionrl_taskapp.envs.gymnasium import fitted
from visionrl_taskapp.envs.protocol import SnapshotEnvironment
from visionrl_taskapp.envs.registry import EnvironmentRefused, Prepared, prepare

DOORKEY = {"id": "MiniGrid-DoorKey-5x5-v0", "kwargs": {"tile_size": 16}, "imageSize": 96}
RED_BALL = {
    "id": "BabyAI-GoToRedBall-v0",
    "kwargs": {"tile_size": 16, "room_size": 6, "num_dists": 0, "highlight": False},
    "imageSize": 96,
    "length": 15,
}


class Dial(gymnasium.Env[Any, Any]):
    """Two dials; succeeds by its info at 2-1. Its copies are new games, as Atari's are."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.MultiDiscrete([3, 2])
    observation_space = spaces.Box(0, 3, (2,), np.int64)

    def __init__(self, render_mode: str = "rgb_array", copies: bool = False, seeded: bool = True) -> None:
        self.render_mode, self._copies, self._seeded = render_mode, copies, seeded
        self.at, self.turns = np.zeros(2, np.int64), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed if self._seeded else None)
        self.at, self.turns = self.np_random.integers(0, 2**40, 2), 0
        return self.at, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at, self.turns = np.asarray(action), self.turns + 1
        return self.at, 0.5, False, False, {"solved": tuple(action) == (2, 1), "turns": self.turns}

    def render(self) -> Any:
        return np.full((4, 6, 3), (50 * self.turns + 10 * self.at[0] + self.at[1]) % 256, np.uint8)

    def __deepcopy__(self, memo: Any) -> "Dial":
        other = Dial()
        if self._copies:
            vars(other).update({name: value for name, value in vars(self).items() if name != "_np_random"})
        return other


gymnasium.register("Dial-v0", entry_point=lambda **settings: Dial(**settings), max_episode_steps=4)
DIAL = {"id": "Dial-v0", "imageSize": 64}


def game(settings: dict[str, Any]) -> Prepared:
    return prepare("gymnasium", EnvSettings.model_validate(settings))


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(EnvironmentRefused) as caught:
        game(settings)
    return str(caught.value)


def test_minigrid_plays_by_its_own_names_and_tells_its_mission() -> None:
    description, environment = game(DOORKEY).description, game(DOORKEY).make()
    assert description.actions == ("left", "right", "forward", "pickup", "drop", "toggle", "done")
    assert (description.events, description.deterministic) == (("success",), True)
    environment.reset(3)
    assert "key" in environment.instruction()
    assert environment.render().shape == (96, 96, 3)


def test_a_copy_continues_as_the_original_does() -> None:
    environment, other = game(DOORKEY).make(), game(DOORKEY).make()
    assert isinstance(environment, SnapshotEnvironment)
    assert isinstance(other, SnapshotEnvironment)
    environment.reset(5)
    kept = environment.snapshot()
    before = environment.state_hash()
    environment.step("right")
    other.restore(kept)
    assert other.state_hash() == before != environment.state_hash()
    other.step("right")
    assert other.state_hash() == environment.state_hash()
    assert np.array_equal(other.render(), environment.render())


def test_what_is_carried_is_part_of_the_state() -> None:
    environment = game(DOORKEY).make()
    environment.reset(1)
    before = environment.state_hash()
    environment.game.carrying = next(cell for cell in environment.game.grid.grid if cell and cell.type == "key")  # type: ignore[attr-defined]
    assert environment.state_hash() != before


def test_babyais_bot_is_the_player_of_its_levels() -> None:
    ball = game(RED_BALL)
    assert ball.description.player is not None
    environment = ball.make()
    for seed in range(5):
        environment.reset(seed)
        step = None
        while step is None or not step.done:
            for action in ball.description.player.plan(environment, 3):
                step = environment.step(action)
        assert step.events == ("success",)
        assert step.score > 0
    assert game(DOORKEY).description.player is None


def test_the_length_ends_an_episode_as_a_limit_of_time() -> None:
    environment = game({**RED_BALL, "length": 2}).make()
    environment.reset(0)
    steps = [environment.step("drop"), environment.step("drop")]
    assert [(step.terminated, step.truncated) for step in steps] == [(False, False), (False, True)]


def test_combinations_of_actions_are_named_and_info_says_success_and_scores() -> None:
    names = [f"{a}-{b}" for a in ("low", "mid", "high") for b in ("off", "on")]
    dial = game({**DIAL, "actionNames": names, "successKey": "solved", "scoreKeys": ["turns"], "idleAction": "low-off"})
    environment = dial.make()
    environment.reset(0)
    assert environment.step("low-off").events == ()
    step = environment.step("high-on")
    assert (step.events, step.score, environment.scores()) == (("success",), 0.5, {"turns": 2.0})
    assert dial.description.idle == "low-off"
    environment.step("low-on")
    assert environment.step("low-on").truncated  # Gymnasium's own limit


def test_a_snapshot_is_offered_only_where_a_copy_was_seen_to_continue() -> None:
    assert not isinstance(game(DIAL).make(), SnapshotEnvironment)
    assert isinstance(game({**DIAL, "kwargs": {"copies": True}}).make(), SnapshotEnvironment)


def test_a_game_that_forgets_its_seed_promises_nothing() -> None:
    assert not game({**DIAL, "kwargs": {"seeded": False}}).description.deterministic


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "MiniGrid-DoorKeey-5x5-v0"}, "envConfig.id: Environment `MiniGrid-DoorKeey-5x5` doesn't exist"),
        ({"id": "Other-v0"}, "write package:Other-v0"),
        ({"id": "no_such_package:Game-v0"}, "envConfig.id: No module named 'no_such_package'"),
        ({"id": "Pendulum-v1", "kwargs": {}}, "envConfig.id: Pendulum-v1 has Box actions"),
        ({"kwargs": {"size_of": 3}}, "envConfig.kwargs: MiniGrid-DoorKey-5x5-v0 does not take them"),
        ({"kwargs": {"tile_size": 32}}, "envConfig.imageSize: frames are 160 × 160 px: imageSize must be at least 160"),
        ({"actionNames": ["a", "b"]}, "envConfig.actionNames: 2 names; MiniGrid-DoorKey-5x5-v0 has 7 actions"),
        ({"actionNames": [*"abcdef", "a"]}, "envConfig.actionNames: a name is given twice"),
        ({"idleAction": "wait"}, "envConfig.idleAction: is no action; there are left, right"),
        ({"hashFields": ["luck"]}, "envConfig.hashFields: MiniGrid-DoorKey-5x5-v0 has no attribute luck"),
        ({"difficulty": "hard"}, "envConfig.difficulty: unknown key"),
        ({"kwarg": {}}, "envConfig.kwarg: unknown key; did you mean kwargs?"),
        ({"id": ""}, "at least 1 character"),
    ],
)
def test_what_cannot_be_played_is_refused_with_its_field(change: dict[str, Any], message: str) -> None:
    assert message in refused({**DOORKEY, **change})


@given(st.integers(1, 40), st.integers(1, 40), st.integers(40, 130))
def test_pixels_become_squares_and_stay_in_their_corner(height: int, width: int, size: int) -> None:
    frame = np.random.default_rng(0).integers(1, 255, (height, width, 3)).astype(np.uint8)
    shown = fitted(frame, size)
    factor = size // max(height, width)
    assert shown.shape == (size, size, 3)
    assert np.array_equal(shown[: factor * height : factor, : factor * width : factor], frame)
    assert not shown[factor * height :].any()
    assert not shown[:, factor * width :].any()


@pytest.mark.parametrize("frame", [None, np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_frame_is_refused(frame: Any) -> None:
    with pytest.raises(ValueError, match="frames are uint8"):
        fitted(frame, 64)
