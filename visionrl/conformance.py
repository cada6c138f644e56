"""Whether a server speaks the rollout contract (docs/rollout.md): it is asked as the trainer asks it.

A stand-in model answers the server's completions, so nothing is needed but the server's address and key. Each check
says in one line what it found; the first line of a failed one names the field.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from pydantic import ValidationError

from visionrl.adapters import SERVER_HEADER
from visionrl.problems import problems
from visionrl.rollout import Decision, RolloutResponse
from visionrl.tools import tool_call_text

TURNS = 3
TIMEOUT_S = 120.0
TOKEN_IDS, LOGPROBS, PROMPT_IDS = [5, 6, 7], [-0.5, -0.25, -1.0], [1, 2, 3, 4]


class Nonconforming(Exception):
    """What the server does otherwise; the message is for its author."""


@dataclass(frozen=True)
class Outcome:
    """One check: its name, and what is wrong (empty: nothing)."""

    name: str
    problem: str = ""


@dataclass
class Model:
    """The stand-in for the policy: answers every completion with the first action, or with prose, or never."""

    actions: list[str]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        if body["model"] == "slow":
            self.gone.wait(TIMEOUT_S)
        text = "I will think about it." if body["model"] == "prose" else tool_call_text(self.actions[:1])
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        choice |= {"token_ids": TOKEN_IDS, "logprobs": {"content": [{"logprob": value} for value in LOGPROBS]}}
        return {"model": body["model"], "choices": [choice], "usage": {}, "prompt_token_ids": PROMPT_IDS}

    def frames(self, model: str) -> list[str]:
        """The images that the server sent for a model, as base64 PNGs."""
        parts = [
            part
            for body in self.bodies
            if body["model"] == model
            for message in body["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
        ]
        return [part["image_url"]["url"].partition(",")[2] for part in parts if part["type"] == "image_url"]


@dataclass
class Subject:
    """The server under test."""

    client: httpx.Client
    key: str
    model: Model
    info: dict[str, Any]
    env: dict[str, Any]

    def request(self, run_id: str = "", model: str = "policy", **changes: Any) -> dict[str, Any]:
        config = {
            "model": model,
            "inference_url": self.model.url,
            "use_vision": True,
            "max_llm_calls": TURNS,
            "max_actions": 2,
            "history_turns": 0,
            "temperature": 1.0,
            "turn_timeout_s": 60.0,
        }
        return {
            "run_id": run_id or f"check-{secrets.token_hex(6)}",
            "mode": "rl",
            "env": self.env,
            "policy": {"policy_name": f"{self.env['env_name']}-react", "config": config},
            "record": {"logprobs": True, "images": True, "messages": True},
            **changes,
        }

    def post(self, body: Any, key: str | None = None) -> httpx.Response:
        headers = {"x-api-key": self.key if key is None else key}
        return self.client.post("/rollout", json=body, headers=headers)

    def play(self, body: dict[str, Any]) -> RolloutResponse:
        answer = self.post(body)
        _expect(answer.status_code == 200, f"POST /rollout answered {answer.status_code}: {answer.text[:200]}")
        try:
            return RolloutResponse.model_validate_json(answer.content)
        except ValidationError as error:
            first = next(iter(problems(error, RolloutResponse, by_alias=False)))
            raise Nonconforming(f"the answer's {first}") from None

    def decisions(self, body: dict[str, Any]) -> list[Decision]:
        found = self.play(body)
        _expect(not found.aborted, f"the episode was aborted: {found.abort_reason}: {found.abort_message}")
        _expect(len(found.trajectories) == 1, f"trajectories: {len(found.trajectories)}; one episode has one")
        return found.trajectories[0].decisions


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Nonconforming(otherwise)


# --- the checks, in the order in which a server is written


def health_needs_no_key(server: Subject) -> None:
    answer = server.client.get("/health")
    _expect(answer.status_code == 200, f"GET /health answered {answer.status_code}; a ready server answers 200")


def everything_else_needs_the_key(server: Subject) -> None:
    for answer in (server.client.get("/task_info"), server.post(server.request(), key="wrong")):
        path = answer.request.url.path
        _expect(answer.status_code in (401, 403), f"{path} answered {answer.status_code} without a valid key; 401")


def an_episode_is_played(server: Subject) -> None:
    body = server.request()
    found = server.play(body)
    _expect(found.run_id == body["run_id"], f"run_id is {found.run_id!r}, asked was {body['run_id']!r}")
    _expect(len(found.metrics.episode_returns) == 1, "metrics.episode_returns: one number, the episode's return")
    decisions = server.decisions(server.request())
    _expect(1 <= len(decisions) <= TURNS, f"decisions: {len(decisions)}; max_llm_calls was {TURNS}")
    indices = [decision.index for decision in decisions]
    _expect(indices == list(range(len(decisions))), f"decisions[].index is {indices}; 0, 1, 2, …")
    for decision in decisions:
        _expect(decision.valid, f"decisions[].valid is false for a usable tool call: {decision.error}")
        wanted = server.model.actions[:1]
        _expect(decision.actions == wanted, f"decisions[].actions is {decision.actions}; the model asked for {wanted}")
        _expect(bool(decision.state_hash), "decisions[].state_hash is empty")


def what_was_sampled_is_returned_as_it_was(server: Subject) -> None:
    for decision in server.decisions(server.request(model="job-v000001-0a1b2c3d4e5f")):
        _expect(
            decision.model == "job-v000001-0a1b2c3d4e5f", f"decisions[].model is {decision.model!r}, not who answered"
        )
        _expect(decision.prompt_token_ids == PROMPT_IDS, "decisions[].prompt_token_ids are not the model server's")
        _expect(decision.token_ids == TOKEN_IDS, "decisions[].token_ids are not the model server's")
        _expect(decision.logprobs == LOGPROBS, "decisions[].logprobs are not the model server's")
    asked = next(body for body in server.model.bodies if body["model"] == "job-v000001-0a1b2c3d4e5f")
    for name, value in {"logprobs": True, "return_token_ids": True, "top_p": 1.0}.items():
        _expect(
            asked.get(name) == value, f"the completion's {name} was {asked.get(name)!r}; {value!r} with record.logprobs"
        )


def frames_are_those_that_the_model_saw(server: Subject) -> None:
    from visionrl.frames import decode_png, frame_hash

    found = server.play(server.request(model="sees"))
    sent = {frame_hash(decode_png(base64.b64decode(png))) for png in server.model.frames("sees")}
    size = server.env["config"].get("image_size")
    for decision in found.trajectories[0].decisions:
        _expect(bool(decision.images), "decisions[].images is empty though use_vision is true")
        for name in decision.images:
            _expect(name in found.images, f"images has no {name[:12]}… with record.images")
            pixels = decode_png(base64.b64decode(found.images[name]))
            _expect(frame_hash(pixels) == name, "images: a PNG's pixels do not have the hash that names it")
            _expect(name in sent, "decisions[].images names a frame that the model was not sent")
            square = pixels.shape[0] == pixels.shape[1] == (size or pixels.shape[0])
            _expect(square, f"frames are {pixels.shape[1]} × {pixels.shape[0]} px; squares of env.config.image_size")


def a_repeated_run_is_the_same_episode(server: Subject) -> None:
    body = server.request()
    first, calls = server.post(body), len(server.model.bodies)
    again = server.post(body)
    _expect(len(server.model.bodies) == calls, "a repeated run_id with the same body was played again")
    _expect(first.json() == again.json(), "a repeated run_id with the same body got another answer")
    other = server.post({**body, "env": {**server.env, "seed": server.env["seed"] + 1}})
    _expect(other.status_code == 409, f"a used run_id with another body was answered {other.status_code}; 409")


def the_same_seed_and_actions_lead_to_the_same_frames(server: Subject) -> None:
    if server.info.get("deterministic") is False:
        return
    first, second = (server.decisions(server.request()) for _ in range(2))
    for name in ("images", "state_hash"):
        same = [getattr(each, name) for each in first] == [getattr(each, name) for each in second]
        _expect(same, f"decisions[].{name} differ for one seed; say deterministic: false in /task_info if they may")


def an_answer_without_a_call_is_a_decision_that_is_not_valid(server: Subject) -> None:
    for decision in server.decisions(server.request(model="prose", rewards={"invalid_penalty": 0.25})):
        _expect(not decision.valid and bool(decision.error), "decisions[].valid is true for prose, or error is empty")
        _expect(decision.reward.penalty == 0.25, "decisions[].reward.penalty is not rewards.invalid_penalty")


def a_model_that_does_not_answer_aborts_the_episode(server: Subject) -> None:
    body = server.request(model="slow")
    body["policy"]["config"]["turn_timeout_s"] = 1.0
    found = server.play(body)
    _expect(
        found.aborted and found.abort_reason == "turn_timeout", f"abort_reason is {found.abort_reason}; turn_timeout"
    )


def what_cannot_be_played_is_refused(server: Subject) -> None:
    wrong = {
        "an unknown field": server.request(nonsense=1),
        "another environment": server.request(env={**server.env, "env_name": "no-such-game"}),
        "no object": ["a", "list"],
    }
    for what, body in wrong.items():
        answer = server.post(body)
        _expect(answer.status_code in (400, 422), f"{what} was answered {answer.status_code}; 422 with the field")
        _expect("error" in _object(answer), f"{what}: the answer has no error")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    health_needs_no_key,
    everything_else_needs_the_key,
    an_episode_is_played,
    what_was_sampled_is_returned_as_it_was,
    frames_are_those_that_the_model_saw,
    a_repeated_run_is_the_same_episode,
    the_same_seed_and_actions_lead_to_the_same_frames,
    an_answer_without_a_call_is_a_decision_that_is_not_valid,
    a_model_that_does_not_answer_aborts_the_episode,
    what_cannot_be_played_is_refused,
)


def check(url: str, key: str, config: dict[str, Any] | None = None, model_host: str = "127.0.0.1") -> Iterator[Outcome]:
    """The outcome of each check. ``config`` is ``env.config`` of the episodes; ``model_host`` is this machine's address
    as the server sees it. Stops where the server cannot even say what it plays."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        try:
            info = _object(client.get("/task_info", headers={"x-api-key": key}))
            actions = info["action_space"]["actions"]
            name = info["environment"]
            _expect(isinstance(actions, list) and bool(actions), "action_space.actions is no list of names")
        except (httpx.HTTPError, httpx.InvalidURL, Nonconforming, KeyError, TypeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            yield Outcome("GET /task_info says what is played", f"{url}: {why}")
            return
        yield Outcome("GET /task_info says what is played")
        env = {"env_name": name, "config": config or {}, "seed": 7}
        with _serving(Model([str(action) for action in actions]), model_host) as model:
            server = Subject(client, key, model, info, env)
            for each in CHECKS:
                yield Outcome(each.__name__.replace("_", " "), _problem(each, server))


def _problem(each: Callable[[Subject], None], server: Subject) -> str:
    try:
        each(server)
    except Nonconforming as problem:
        return str(problem)
    except (httpx.HTTPError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        data = answer.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise Nonconforming(f"{answer.request.url.path} answered {answer.status_code}, not a JSON object")
    return data


@contextmanager
def _serving(model: Model, host: str) -> Iterator[Model]:
    """The model behind `/v1/chat/completions` on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            data = json.dumps(model.answer(body)).encode()
            try:
                self.send_response(200)
                for name, value in {"content-type": "application/json", SERVER_HEADER: "conformance"}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # who asked has given up

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1" if host == "127.0.0.1" else "0.0.0.0", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        model.url = f"http://{host}:{server.server_address[1]}"
        try:
            yield model
        finally:
            model.gone.set()
            server.shutdown()
            thread.join()
