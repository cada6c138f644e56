"""``python -m visionrl_inference``: get the base model, then become vLLM's API server."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path

from visionrl.component import EXIT_CONFIGURATION, ComponentContext, ConfigurationError
from visionrl_inference.base_model import resolve_base_model
from visionrl_inference.fetch import trainer_client
from visionrl_inference.vllm_args import PLUGIN, ExtraArgsError, vllm_command, vllm_environment

USAGE = """\
Serves a job's base model and its adapters with vLLM.

environment:
  VISIONRL_JOB          file with the resolved job (JSON); required
  VISIONRL_KEY_FILE     file with the job's key, wanted on every path but /health and /metrics; required
  VISIONRL_TRAINER_URL  trainer that adapters, and a warm-started base, come from; required
  VISIONRL_CACHE_DIR    folder for models, fetched adapters and compiled kernels; required
  VISIONRL_HOST         address to listen on (default 127.0.0.1)
  VISIONRL_PORT         port to listen on (default 8000)

The base model is taken from spec.model.base: a model of the hub, a path, or "tiny", which is built on first use; with
spec.training.warmStart it is fetched from the trainer once it is trained. A request for the model
"<job>-v000012-0a1b2c3d4e5f" loads that adapter.

exit codes: 2 the configuration cannot work, 1 anything else before vLLM starts, then vLLM's own.
"""


def main() -> int:
    """Run, or print what would be run. Returns an exit code only where vLLM is not started."""
    parser = argparse.ArgumentParser(
        prog="python -m visionrl_inference", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="print vLLM's environment and command, start nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return _serve(print_only=arguments.print)
    except (ConfigurationError, ExtraArgsError) as error:
        return _fail(EXIT_CONFIGURATION, error)
    except OSError as error:
        return _fail(1, error)


def _serve(print_only: bool) -> int:
    context = ComponentContext.from_environment()
    job, host, port = context.job(), context.host, context.port
    trainer = functools.partial(trainer_client, context.trainer_url, context.key)
    cache = context.cache_dir
    if not entry_points(group="vllm.endpoint_plugins", name=PLUGIN):
        raise ConfigurationError(
            "vLLM would not find the adapter plugin: install the visionrl distribution (pip install)"
        )
    vllm_command(job, Path("model"), port, host)  # refuse bad arguments before the model is downloaded
    if print_only:
        _print(vllm_command(job, Path(job.spec.model.base), port, host), vllm_environment(job, cache))
        return 0
    command = vllm_command(job, resolve_base_model(job, cache, trainer), port, host)
    logging.info("starting %s", shlex.join(command))
    sys.stdout.flush()
    # vLLM takes this process's place: it is the container's first process and gets its signals.
    return os.execvpe(command[0], command, os.environ | vllm_environment(job, cache))


def _print(command: list[str], environment: dict[str, str]) -> None:
    for name, value in environment.items():
        print(f"{name}={shlex.quote(value)} \\")
    print(shlex.join(command))


def _fail(code: int, error: Exception) -> int:
    print(f"visionrl_inference: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
