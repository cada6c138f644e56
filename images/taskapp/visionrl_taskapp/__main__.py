"""Start the task app: `python -m visionrl_taskapp`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import logging.config
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from visionrl import tracing
from visionrl.checks import undetermined
from visionrl.component import EXIT_CONFIGURATION, ComponentContext, ConfigurationError
from visionrl.connections import connection_limit, limited_protocol, raise_file_limit
from visionrl.hang import watch
from visionrl.rollout import EnvSpec
from visionrl_taskapp.envs.registry import EnvironmentRefused, Prepared, prepare
from visionrl_taskapp.policies.completions import completion_url
from visionrl_taskapp.rollouts.traces import DEFAULT_MAX_EPISODES
from visionrl_taskapp.server.app import Settings, TaskApp, create_app
from visionrl_taskapp.server.auth import accepted_keys

log = logging.getLogger("visionrl_taskapp")

# A trainer's update may take minutes; its connections stay open meanwhile.
KEEP_ALIVE_S = 900
# Pods are killed 30 s after SIGTERM; episodes in flight are ended at once and returned.
SHUTDOWN_S = 20

EPILOG = """\
environment:
  VISIONRL_HOST, VISIONRL_PORT   address to listen on (127.0.0.1, 8000)
  VISIONRL_KEY_FILE              file with the job's key, required by every path but /health
  ENVIRONMENT_API_KEY            the key, where there is no such file
  ENVIRONMENT_API_KEY_ALIASES    more accepted keys, comma-separated
  VISIONRL_JOB                   the job (JSON): its environment is checked and warmed up; empty is Crafter
  VISIONRL_INFERENCE_URL         the job's inference server, the only one that is sent the job's key
  VISIONRL_POLICY_API_KEY        key for any other inference server that a request names (an API provider's)
  VISIONRL_POLICY_API_URL        the only other server that is sent that key; set it where others may send requests
  VISIONRL_TRACE_DIR             folder of traces.db; without it no traces are kept
  VISIONRL_TRACE_MAX_EPISODES    episodes kept in traces.db (2000)

example: one episode of the scripted policy
  ENVIRONMENT_API_KEY=secret python -m visionrl_taskapp &
  curl -s localhost:8000/rollout -H 'X-API-Key: secret' -d '
    {"run_id": "try-1", "mode": "eval", "env": {"seed": 7}, "policy": {"policy_name": "crafter-scripted"}}'
"""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m visionrl_taskapp",
        description="Serves episodes of an environment over HTTP: POST /rollout plays one and returns its trajectory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on; takes precedence over VISIONRL_HOST")
    parser.add_argument("--port", type=_port, help="port to listen on; takes precedence over VISIONRL_PORT")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    arguments = parser.parse_args(words)
    logging.config.dictConfig(log_config(arguments.log_level))
    try:
        context = ComponentContext.from_environment()
        settings = read_settings(context)
        if context.variables.get("VISIONRL_JOB"):
            tracing.start(context.job(), "taskApp")
        host, port = arguments.host or context.host, arguments.port or context.port
    except ConfigurationError as error:
        log.error("%s", error)
        return EXIT_CONFIGURATION
    if not settings.keys:
        log.warning("no key: set VISIONRL_KEY_FILE or ENVIRONMENT_API_KEY; until then every request gets 503")
    raise_file_limit()
    taskapp = TaskApp(settings)
    server = Server(
        uvicorn.Config(
            create_app(taskapp),
            host=host,
            port=port,
            loop="uvloop",
            http=limited_protocol(connection_limit()),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
            backlog=2048,
        ),
        taskapp,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when it has shut down; an orderly end is exit code 0.
        signal.signal(number, lambda *_: None)
    server.run()
    return 0 if server.started else 1


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def read_settings(context: ComponentContext) -> Settings:
    """Settings of the environment. Raises :class:`ConfigurationError`."""
    variables = context.variables
    key = context.key if variables.get("VISIONRL_KEY_FILE") else None
    folder = variables.get("VISIONRL_TRACE_DIR")
    return Settings(
        game=_game(context),
        keys=accepted_keys(
            key or variables.get("ENVIRONMENT_API_KEY"), variables.get("ENVIRONMENT_API_KEY_ALIASES", "").split(",")
        ),
        job_server=_url(variables, "VISIONRL_INFERENCE_URL"),
        job_key=key,
        policy_key=variables.get("VISIONRL_POLICY_API_KEY") or None,
        policy_server=_url(variables, "VISIONRL_POLICY_API_URL"),
        trace_dir=Path(folder) if folder else None,
        trace_max_episodes=_positive(variables, "VISIONRL_TRACE_MAX_EPISODES", DEFAULT_MAX_EPISODES),
    )


def _game(context: ComponentContext) -> Prepared:
    """The job's environment. Raises :class:`ConfigurationError` with the field that it cannot be made with."""
    if not context.variables.get("VISIONRL_JOB"):
        return prepare(EnvSpec().env_name, EnvSpec().config)
    spec = context.job().spec
    try:
        game = prepare(spec.rollout.env_name, spec.rollout.env_config)
    except EnvironmentRefused as error:
        raise ConfigurationError("; ".join(f"spec.rollout.{problem}" for problem in error.problems)) from None
    if problem := undetermined(spec, game.name, game.description.deterministic):
        raise ConfigurationError(problem)
    return game


def _url(variables: Mapping[str, str], name: str) -> str | None:
    url = variables.get(name)
    if url:
        try:
            completion_url(url)
        except ValueError as error:
            raise ConfigurationError(f"{name}: {url!r}: {error}") from None
    return url or None


def _positive(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"{name}: {text!r} is no positive integer")
    return int(text)


class Server(uvicorn.Server):
    """uvicorn that ends the episodes in flight at the first signal, so that their clients get what was played."""

    def __init__(self, config: uvicorn.Config, taskapp: TaskApp) -> None:
        super().__init__(config)
        self._taskapp = taskapp

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        watch(asyncio.get_running_loop())
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._taskapp.stop_soon()


def log_config(level: str) -> dict[str, Any]:
    """One line per event on stdout: episodes are logged, single requests are not."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
        "root": {"handlers": ["stdout"], "level": level},
    }


if __name__ == "__main__":
    sys.exit(main())
