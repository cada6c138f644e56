"""``visionrl task-app``: a task app on its own, without a job."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from visionrl_cli.extras import needed_packages
from visionrl_cli.taskapp import conformance
from visionrl_cli.values import seconds

DESCRIPTION = """Serve a task app on this machine, deploy one to a cluster, ask one what it is, check one of your own.

A job starts its own task app. One on its own plays for visionrl eval --task-app URL, and for the reference system's
clients. Its key is in ENVIRONMENT_API_KEY or --key-file; every path but /health wants it.
"""
EXAMPLES = """examples:
  ENVIRONMENT_API_KEY=secret visionrl task-app serve --port 8001 --trace-dir traces
  ENVIRONMENT_API_KEY=secret visionrl task-app info http://localhost:8001
  visionrl task-app deploy job.yaml --context gpu-cluster -n team
  visionrl task-app check http://127.0.0.1:8000 --config '{"image_size": 288}'
"""
WARMUP_VARIABLE = "TASK_APP_WARMUP_TIMEOUT"
WARMUP_SECONDS = 300.0
_seconds = seconds(lambda value: 0 <= value < 1e6)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    serve = actions.add_parser("serve", help="serve on this machine until Ctrl-C")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", metavar="N", type=port, default=8000, help="port to listen on (default: 8000)")
    serve.add_argument("--trace-dir", metavar="DIR", type=Path, help="keep traces of all episodes in DIR/traces.db")
    _add_key(serve)
    info = actions.add_parser("info", help="what a running task app serves")
    info.add_argument("--json", action="store_true", help="print JSON")
    checked = actions.add_parser("check", aliases=["validate"], help=conformance.HELP)
    conformance.add_arguments(checked)
    for asked in (info, checked):
        asked.add_argument("url", metavar="URL", nargs="?", help="its address (default: TASK_APP_URL)")
        _add_key(asked)
    deploy = actions.add_parser("deploy", help="make one in a cluster and wait until it is ready")
    deploy.add_argument("file", metavar="FILE", type=Path, help="job file: image, resources and name are its")
    deploy.add_argument("--context", metavar="NAME", help="the kubeconfig's context (default: the current one)")
    deploy.add_argument("-n", "--namespace", metavar="NAME", help="the namespace (default: the context's)")
    deploy.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help=f"seconds to wait, 0 not at all; takes precedence over {WARMUP_VARIABLE} (default: {WARMUP_SECONDS:g})",
    )


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file", metavar="FILE", type=Path, help="file with the key; takes precedence over ENVIRONMENT_API_KEY"
    )


def command(options: argparse.Namespace) -> int:
    if options.action == "serve":
        return _serve(options)
    if options.action == "deploy":
        with needed_packages("task-app"):
            from visionrl_cli.taskapp.standalone import deploy
        return deploy(options.file, options.context, options.namespace, _warmup(options))
    if (url := _url(options)) is None:
        return 1
    if options.action == "info":
        with needed_packages("task-app"):
            from visionrl_cli.taskapp.standalone import info
        return info(url, options.key_file, options.json)
    return conformance.conforms(url, options.key_file, options.config, options.model_host)


def _url(options: argparse.Namespace) -> str | None:
    """The address to ask; None after saying that there is none."""
    url = options.url or os.environ.get("TASK_APP_URL")
    if url is None or not url.startswith(("http://", "https://")):
        found = f"{url!r} is no address such as http://127.0.0.1:8000" if url else "name the task app"
        print(f"visionrl: {found}: visionrl task-app {options.action} URL, or TASK_APP_URL", file=sys.stderr)
        return None
    return url


def _serve(options: argparse.Namespace) -> int:
    """The program of the task app's image, in this process."""
    with needed_packages("task-app", "taskapp"):
        from visionrl_taskapp.__main__ import main
    if options.key_file:
        os.environ["VISIONRL_KEY_FILE"] = str(options.key_file)
    if options.trace_dir:
        os.environ["VISIONRL_TRACE_DIR"] = str(options.trace_dir)
    return main(["--host", options.host, "--port", str(options.port)])


def _warmup(options: argparse.Namespace) -> float:
    if options.timeout is not None:
        return float(options.timeout)
    text = os.environ.get(WARMUP_VARIABLE)
    if not text:
        return WARMUP_SECONDS
    try:
        return _seconds(text)
    except argparse.ArgumentTypeError as error:
        options.usage_error(f"{WARMUP_VARIABLE}: {error}")
        raise


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)
