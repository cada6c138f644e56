"""Games of an OpenEnv server: `envName: openenv`.

    envConfig: {url: http://atari:8000, actions: {left: {action_id: 3}, …}, imageField: screen,
                imageEncoding: flat, shapeField: screen_shape}

An episode is one session of the server, over a WebSocket at `/ws`. The server names neither its picture nor how that is
encoded, so `envConfig` does. It gets the seed and need not keep it: what it promises, `deterministic` says.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import Field

from visionrl.job import EnvSettings, Model
from visionrl.tools import TOOL_NAME
from visionrl_taskapp.envs.gymnasium import ActionName, fitted
from visionrl_taskapp.envs.protocol import (
    Definition,
    Description,
    PackageMissing,
    PromptStyle,
    Score,
    SettingsError,
    Step,
)

MAX_MESSAGE = 64 * 2**20
"""Bytes of a server's message: nested lists of a frame take ten times its pixels."""
MAX_SIDE = 4096
FULL = "CAPACITY_REACHED"
BEHIND_A_PROXY = (502, 503, 504)
"""HTTP statuses of a proxy whose server does not answer."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0


class Settings(Model):
    """OpenEnv's part of `rollout.envConfig`. Fields are dotted paths in an observation."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    """Base URL of the server, http(s) or ws(s)."""
    actions: Annotated[dict[ActionName, dict[str, Any]], Field(min_length=1, max_length=256)]
    """What the server is sent for each action, by the name that the model uses."""
    image_field: Annotated[str, Field(min_length=1)]
    """Field of the image."""
    image_encoding: Literal["base64", "nested", "flat"] = "base64"
    """`base64`: a PNG or JPEG, also as a data URL; `nested`: lists of rows of pixels; `flat`: one list of numbers, of
    the shape that `shape_field` names."""
    shape_field: str | None = None
    """Field with height, width and, for colours, 3."""
    instruction_field: str | None = None
    """Field with the task in words, part of every prompt."""
    success_field: str | None = None
    """Field that says that the episode succeeded; empty: it ended with a reward above 0."""
    score_fields: list[str] = Field(default_factory=list)
    """Fields whose last values are scores of the episode."""
    state_fields: list[str] = Field(default_factory=list)
    """Fields that make two states equal; empty compares the whole observation."""
    deterministic: bool = False
    """Whether the server's game is a function of seed and actions alone; it is believed."""
    idle_action: ActionName | None = None
    """The action that an answer without a usable tool call executes; empty executes nothing."""
    wait_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """For an answer, and for a session of a server that has none free or starts; `policyConfig.turnTimeoutS` may end
    it."""
    image_size: int = EnvSettings().image_size
    length: int = EnvSettings().length


class ServerError(RuntimeError):
    """The server's answer cannot be used; the message says why."""


class OpenEnvEnvironment:
    """One session of the server, opened by `reset`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = contextlib.ExitStack()
        self._connection: Any = None
        self._observation: Mapping[str, Any] = {}
        self._steps = 0
        self._closed = threading.Event()

    def reset(self, seed: int) -> None:
        """Open a session and start the episode; waits while the server has no session free, or does not listen."""
        until, pause = time.monotonic() + self._settings.wait_seconds, FIRST_WAIT_S
        while True:
            self._session.close()
            try:
                self._connect(until)
                self._ask("reset", {"seed": seed}, until)
                self._steps = 0
                return
            except _Busy as busy:
                if time.monotonic() + pause >= until:
                    raise ServerError(f"no session in {self._settings.wait_seconds:g} s: {busy}") from None
            if self._closed.wait(pause):
                raise ServerError("the episode ended while it waited for a session")
            pause = min(2 * pause, LONGEST_WAIT_S)

    def step(self, action: str) -> Step:
        settings = self._settings
        answer = self._ask("step", settings.actions[action], time.monotonic() + settings.wait_seconds)
        self._steps += 1
        reward, done = answer.get("reward"), bool(answer.get("done"))
        value = float(reward) if isinstance(reward, int | float) else 0.0
        if not math.isfinite(value):
            raise ServerError(f"the reward is {value}")
        success = bool(self._at(settings.success_field)) if settings.success_field else done and value > 0
        return Step(value, value, ("success",) if success else (), done, not done and self._steps >= settings.length)

    def render(self) -> np.ndarray:
        settings = self._settings
        try:
            return fitted(_pixels(self._at(settings.image_field), settings, self._observation), settings.image_size)
        except ValueError as error:
            raise ServerError(f"{settings.image_field}: {error}") from None

    def state_hash(self) -> str:
        fields = self._settings.state_fields
        state = {name: self._at(name) for name in fields} if fields else self._observation
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def instruction(self) -> str:
        field = self._settings.instruction_field
        return str(self._at(field)) if field else ""

    def text(self, events: Sequence[str]) -> str:
        return ""

    def state(self) -> Mapping[str, Any]:
        return {}

    def scores(self) -> Mapping[str, float]:
        return {name: float(self._at(name)) for name in self._settings.score_fields}

    def close(self) -> None:
        self._closed.set()
        self._session.close()

    def _at(self, path: str) -> Any:
        value: Any = self._observation
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise ServerError(f"the observation has no {path}; it has {', '.join(sorted(self._observation))}")
            value = value[name]
        return value

    def _connect(self, until: float) -> None:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        left = max(0.1, until - time.monotonic())
        try:
            self._connection = self._session.enter_context(
                connect(_socket_url(self._settings.url), open_timeout=left, max_size=MAX_MESSAGE, proxy=None)
            )
        except (OSError, WebSocketException) as error:
            message = f"{self._settings.url} cannot be reached: {error or type(error).__name__}"
            raise (_Busy if _may_be_starting(error) else ServerError)(message) from None

    def _ask(self, kind: str, data: Mapping[str, Any], until: float) -> Mapping[str, Any]:
        """Send a message and keep the observation of its answer."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):  # a full server says so, and closes before it reads anything
            self._connection.send(json.dumps({"type": kind, "data": data}))
        try:
            answer = self._connection.recv(timeout=max(0.1, until - time.monotonic()))
        except TimeoutError:
            raise ServerError(f"no answer to {kind} in {self._settings.wait_seconds:g} s") from None
        except ConnectionClosed as error:
            raise ServerError(f"the server closed the session: {error}") from None
        return self._read(answer)

    def _read(self, text: str | bytes) -> Mapping[str, Any]:
        try:
            message = json.loads(text)
            kind, data = message["type"], message["data"]
        except (ValueError, KeyError, TypeError):
            raise ServerError(f"the server's answer is no message of OpenEnv: {text[:80]!r}") from None
        if kind == "error":
            said = f"{data.get('code')}: {data.get('message')}" if isinstance(data, Mapping) else str(data)
            raise (_Busy if FULL in said else ServerError)(said[:300])
        if kind != "observation" or not isinstance(data, Mapping) or not isinstance(data.get("observation"), Mapping):
            raise ServerError(f"the server's answer is {kind!r} without an observation")
        self._observation = data["observation"]
        return data


class _Busy(ServerError):
    """A later try may succeed: all sessions of the server are taken, or it starts."""


def _may_be_starting(error: Exception) -> bool:
    """Whether a server that was not reached may be a moment later: not with a wrong name, certificate or path."""
    from websockets.exceptions import InvalidStatus

    if isinstance(error, InvalidStatus):
        return error.response.status_code in BEHIND_A_PROXY
    return isinstance(error, OSError) and not isinstance(error, socket.gaierror | ssl.SSLError)


def _socket_url(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/")
    return parts._replace(scheme=scheme, path=path if path.endswith("/ws") else f"{path}/ws").geturl()


def _pixels(value: Any, settings: Settings, observation: Mapping[str, Any]) -> np.ndarray:
    """The image as uint8 [H, W, 3]; grey ones get three equal channels. Raises `ValueError`."""
    if settings.image_encoding == "base64":
        return _decoded(value)
    try:
        pixels = np.asarray(value)
        if settings.image_encoding == "flat":
            pixels = pixels.reshape([int(side) for side in observation[settings.shape_field or ""]])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is no array of pixels: {error}") from None
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.dtype.kind not in "iu" or not (pixels.size and pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError(f"has {pixels.dtype} values; pixels are whole numbers from 0 to 255")
    return np.ascontiguousarray(pixels, np.uint8)


def _decoded(value: Any) -> np.ndarray:
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}, not a base64 text (imageEncoding)")
    try:
        data = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            if not max(image.size) <= MAX_SIDE:
                raise ValueError(f"is {image.size[0]} × {image.size[1]} px; the most is {MAX_SIDE}")
            return np.array(image.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"is neither PNG nor JPEG in base64: {error}") from None


def describe(settings: Settings) -> Description:
    try:
        import websockets  # noqa: F401
    except ImportError:
        raise PackageMissing("", "the package websockets is missing: install visionrl[environments]") from None
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        raise SettingsError("url", f"{settings.url!r} is no URL: write http://host:port")
    if settings.image_encoding == "flat" and not settings.shape_field:
        raise SettingsError("shapeField", "required with imageEncoding flat: the field with height, width and 3")
    if settings.idle_action not in (None, *settings.actions):
        raise SettingsError("idleAction", f"is no action; there are {', '.join(settings.actions)}")
    names = tuple(settings.actions)

    def prompt(style: PromptStyle) -> str:
        task = "Do what the message says." if settings.instruction_field else "Reach the highest reward."
        return (
            f"You play a game. {task} The image shows the current situation.\n\nActions: {', '.join(names)}.\n\n"
            f"Answer with one call of {TOOL_NAME} with 1 to {style.max_actions} actions; they are done in order."
        )

    return Description(
        title=f"OpenEnv at {settings.url}",
        actions=names,
        tool="Play actions, one after another.",
        prompt=prompt,
        scores=(
            Score("return", "sum of the server's rewards"),
            *(Score(name, f"{name} of the last observation") for name in settings.score_fields),
        ),
        events=("success",),
        observation={"type": "image", "format": "PNG, RGB", "size": settings.image_size},
        idle=settings.idle_action,
        deterministic=settings.deterministic,
    )


DEFINITION = Definition(settings=Settings, describe=describe, make=OpenEnvEnvironment, remote=True)
