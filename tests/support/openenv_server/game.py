"""A counting game on an OpenEnv server: the image shows the count, `add` adds to it, 4 wins. Two sessions at most.

python game.py PORT
"""

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Move(Action):
    add: int


class Seen(Observation):
    screen: list[int]
    shape: list[int]
    count: int


class Counting(Environment[Move, Seen, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def seen(self) -> Seen:
        won = self.count >= 4
        return Seen(screen=[20 * self.count] * 192, shape=[8, 8, 3], count=self.count, reward=float(won), done=won)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Seen:
        self.count = (seed or 0) % 2
        return self.seen()

    def step(self, action: Move, timeout_s: float | None = None, **more: Any) -> Seen:
        self.count += action.add
        return self.seen()

    @property
    def state(self) -> State:
        return State(step_count=self.count)


if __name__ == "__main__":
    uvicorn.run(
        create_fastapi_app(Counting, Move, Seen, max_concurrent_envs=2), port=int(sys.argv[1]), log_level="error"
    )
