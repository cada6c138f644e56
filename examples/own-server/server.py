"""A task app of the standard library alone: the rollout contract of docs/rollout.md in one file.

    ROLLOUT_KEY=secret python server.py 8000
    visionrl task-app check http://127.0.0.1:8000 --key-file key

Its game: a lamp is red or blue by the seed, and `press` the button of its colour.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACTIONS = ["press_red", "press_blue"]
TOOL = {
    "type": "function",
    "function": {
        "name": "interact_many",
        "description": "Press buttons.",
        "parameters": {
            "type": "object",
            "properties": {"actions": {"type": "array", "items": {"type": "string", "enum": ACTIONS}}},
            "required": ["actions"],
        },
    },
}
KNOWN = {"run_id", "mode", "env", "policy", "ops", "record", "on_done", "safety", "rewards", "training_session_id"}


class Refused(Exception):
    """A request that cannot be played: status, field, what is wrong."""

    def __init__(self, status: int, field: str, message: str) -> None:
        self.status, self.field, self.message = status, field, message


# --- the game


class Lamp:
    """Lights up `turns` times; each right button is worth 1."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size, self.turn = seed, size, 0

    @property
    def red(self) -> bool:
        return hashlib.sha256(f"{self.seed} {self.turn}".encode()).digest()[0] % 2 == 0

    def step(self, action: str) -> float:
        right = action == ("press_red" if self.red else "press_blue")
        self.turn += 1
        return float(right)

    def pixels(self) -> bytes:
        return bytes((220, 40, 40) if self.red else (40, 40, 220)) * self.size**2

    def state_hash(self) -> str:
        return hashlib.sha256(f"{self.seed} {self.turn}".encode()).hexdigest()


def frame_hash(pixels: bytes, size: int) -> str:
    return hashlib.sha256(f"{size}x{size}x3:".encode() + pixels).hexdigest()


def png(pixels: bytes, size: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[3 * size * row : 3 * size * (row + 1)] for row in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- an episode


def play(request: dict) -> dict:
    config, record = request["policy"]["config"], request.get("record", {})
    size = request["env"].get("config", {}).get("image_size", 64)
    penalty = request.get("rewards", {}).get("invalid_penalty", 0.0)
    lamp, decisions, images, abort = Lamp(request["env"]["seed"], size), [], {}, None
    until = time.monotonic() + request.get("safety", {}).get("max_time_s", 3600.0)
    for index in range(config.get("max_llm_calls", 10)):
        pixels, state = lamp.pixels(), lamp.state_hash()
        name, data = frame_hash(pixels, size), base64.b64encode(png(pixels, size)).decode()
        images[name] = data
        shown = [{"role": "user", "content": [{"type": "image", "sha256": name}]}]
        sent = [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]}
        ]
        deadline = min(until, time.monotonic() + config.get("turn_timeout_s", 120.0))
        try:
            completion = complete(config, sent, record.get("logprobs", False), deadline - time.monotonic())
        except TimeoutError:
            abort = ("turn_timeout", "no response within policy.config.turn_timeout_s")
            break
        except (urllib.error.URLError, ValueError, KeyError) as error:
            abort = ("inference_error", str(error)[:200])
            break
        choice = completion["choices"][0]
        text = choice["message"].get("content") or ""
        actions, error = called(text, config.get("max_actions", 5))
        score = sum(lamp.step(action) for action in actions)
        decisions.append(
            {
                "index": index,
                "images": [name],
                "text": text,
                "tool_calls": [{"tool_name": "interact_many", "arguments": {"actions": actions}}] if actions else [],
                "valid": error is None,
                "error": error,
                "actions": actions,
                "unlocked": [],
                "reward": {"event": score, "penalty": penalty if error else 0.0, "env": score},
                "done": False,
                "model": completion["model"],
                "finish_reason": choice.get("finish_reason"),
                "prompt_token_ids": completion.get("prompt_token_ids"),
                "token_ids": choice.get("token_ids"),
                "logprobs": [each["logprob"] for each in choice["logprobs"]["content"]]
                if record.get("logprobs")
                else None,
                "state_hash": state,
                "messages": shown if record.get("messages") else None,
            }
        )
    total = sum(decision["reward"]["event"] for decision in decisions)
    trajectory = {
        "env_id": f"lamp/{request['run_id']}",
        "policy_id": f"{request['policy']['policy_name']}/{request['run_id']}",
        "inference_url": config.get("inference_url", ""),
        "length": len(decisions),
        "steps": [],
        "final": {},
        "decision_samples": [],
        "decisions": decisions,
    }
    metrics = {
        "episode_returns": [total],
        "mean_return": total,
        "num_steps": lamp.turn,
        "num_episodes": 1,
        "outcome_score": total,
        "events_score": total,
        "details": {},
    }
    return {
        "run_id": request["run_id"],
        "trajectories": [trajectory],
        "metrics": metrics,
        "images": images if record.get("images") else {},
        "tools": [TOOL] if record.get("messages") else None,
        "aborted": abort is not None,
        "abort_reason": abort and abort[0],
        "abort_message": abort and abort[1],
        "ops_executed": len(decisions) + lamp.turn,
    }


def complete(config: dict, messages: list, logprobs: bool, seconds: float) -> dict:
    """The model's answer. With `logprobs`, the whole distribution is sampled and the exact token ids are asked for."""
    body = {
        "model": config["model"],
        "messages": messages,
        "tools": [TOOL],
        "temperature": config.get("temperature", 1.0),
        "top_p": 1.0 if logprobs else config.get("top_p", 1.0),
        "max_tokens": config.get("max_tokens", 512),
    }
    if config.get("banned_token_ids"):
        body["logit_bias"] = {str(token): -100 for token in config["banned_token_ids"]}
    if logprobs:
        body |= {"logprobs": True, "return_token_ids": True, "top_k": -1}
    url = config["inference_url"].rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    call = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(call, timeout=max(0.01, seconds)) as answer:
            return json.loads(answer.read(16 << 20))
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError from None
        raise


def called(text: str, most: int) -> tuple[list[str], str | None]:
    """The actions of a response's tool call, or what is wrong with it."""
    start, end = text.find("<tool_call>"), text.find("</tool_call>")
    try:
        actions = json.loads(text[start + len("<tool_call>") : end])["arguments"]["actions"] if 0 <= start < end else []
    except (ValueError, KeyError, TypeError):
        actions = []
    if not isinstance(actions, list) or not 1 <= len(actions) <= most or not all(each in ACTIONS for each in actions):
        return [], f"call interact_many once, with 1 to {most} of {', '.join(ACTIONS)}"
    return actions, None


# --- HTTP

KEY = os.environ.get("ROLLOUT_KEY") or (
    Path(os.environ["VISIONRL_KEY_FILE"]).read_text().strip() if "VISIONRL_KEY_FILE" in os.environ else ""
)
RUNS: dict[str, tuple[bytes, dict]] = {}
LOCK = threading.Lock()
INFO = {
    "task": {"id": "lamp", "name": "Press the button of the lamp's colour", "version": "1"},
    "environment": "lamp",
    "action_space": {"type": "discrete", "size": len(ACTIONS), "actions": ACTIONS},
    "deterministic": True,
}


def rollout(body: bytes) -> dict:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise Refused(400, "", f"the body is no JSON: {error}") from None
    if not isinstance(request, dict):
        raise Refused(422, "", "the body must be a JSON object")
    for name in request.keys() - KNOWN:
        raise Refused(422, name, "unknown field")
    if request.get("env", {}).get("env_name") != "lamp":
        raise Refused(422, "env.env_name", "must be lamp")
    known = RUNS.get(request["run_id"])
    if known and known[0] != body:
        raise Refused(409, "run_id", "was used for a different request")
    if known:
        return known[1]
    answer = play(request)
    if not answer["aborted"]:
        with LOCK:
            RUNS[request["run_id"]] = (body, answer)
            while len(RUNS) > 1000:
                del RUNS[next(iter(RUNS))]
    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"healthy": True})
        elif not self.allowed():
            self.answer(401, {"error": "a valid X-API-Key is required"})
        elif self.path.partition("?")[0] in ("/info", "/task_info"):
            self.answer(200, INFO | {"service": {"name": "lamp", "version": "1"}})
        else:
            self.answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), 1 << 20))
        if not self.allowed():
            self.answer(401, {"error": "a valid X-API-Key is required"})
        elif self.path == "/done":
            self.answer(200, {"ok": True})
        elif self.path != "/rollout":
            self.answer(404, {"error": "no such path"})
        else:
            try:
                self.answer(200, rollout(body))
            except Refused as error:
                problems = [{"field": error.field, "message": error.message}]
                self.answer(error.status, {"error": error.message, "problems": problems})

    def allowed(self) -> bool:
        given = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
        return bool(KEY) and hmac.compare_digest(given.encode(), KEY.encode())

    def answer(self, status: int, data: dict) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("VISIONRL_PORT", "8000"))
    with ThreadingHTTPServer((os.environ.get("VISIONRL_HOST", "127.0.0.1"), port), Handler) as server:
        server.serve_forever()
