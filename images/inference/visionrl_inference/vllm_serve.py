"""``python -m visionrl_inference.vllm_serve``: what ``vllm serve`` does.

vLLM's own command asks for a distribution that is named vllm, which the CPU build is not, and the module that it runs
knows a single API server.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from visionrl.hang import end_process
from visionrl_inference.guard import SERVER_VARIABLE

HUNG = signal.SIGUSR1
"""To the server's first process, from an API server that hangs: vLLM may read its exit code before there is one."""


def main() -> None:
    """Serve until a signal ends it. A process of the server that ends by itself ends all, with an error."""
    signal.signal(HUNG, lambda *_: end_process())
    os.environ[SERVER_VARIABLE] = secrets.token_hex(8)  # for this process and those that it starts
    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args()
    configure_logging_from_args(arguments)
    validate_parsed_serve_args(arguments)
    ServeSubcommand.cmd(arguments)


def end_hung_server() -> None:
    """End the server from one of its API servers' processes, which may be its first."""
    first = multiprocessing.parent_process()
    if first is not None and first.pid is not None:
        os.kill(first.pid, HUNG)
    end_process()


if __name__ == "__main__":
    main()
