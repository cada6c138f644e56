"""A stand-in for a component of a job: ``standin.py BEHAVIOUR [ARG]``. Standard library only, so it starts at once.

serve          healthy until SIGTERM
unready        answers 503 for ever
die CODE       prints twenty lines and ends
once CODE      dies the first time, serves afterwards
stubborn       serves and ignores SIGTERM
parent         serves and has a child that ignores SIGTERM and a grandchild
deaf           serves; answers 500 while the file ``deaf`` is in the run folder
train SECONDS  the trainer: iterates, keeps count in the run folder, ends with 0 after at least that time, once its
               last iteration was asked for (the real one stays a while for that)
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STUBBORN_CHILD = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
GRANDCHILD = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "

report: dict[str, object] = {"phase": "Training", "baseReady": True}
told: set[object] = set()
"""The iterations of the reports that were answered."""
key_file = Path(os.environ.get("VISIONRL_KEY_FILE", ""))
folder = key_file.parent.parent


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if sys.argv[1] == "deaf" and (folder / "deaf").exists():
            self._answer(500, {})
        elif self.path == "/health":
            self._answer(503 if sys.argv[1] == "unready" else 200, {})
        elif self.headers.get("Authorization") != f"Bearer {key_file.read_text()}":
            self._answer(401, {})
        else:
            progress = report.get("progress")
            self._answer(200, report)
            if isinstance(progress, dict):
                told.add(progress["iteration"])

    def _answer(self, code: int, body: dict[str, object]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    behaviour, argument = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    marker = folder / f"died-{os.environ['VISIONRL_PORT']}"
    if behaviour == "die" or (behaviour == "once" and not marker.exists()):
        marker.touch()
        print("\n".join(f"line {number}" for number in range(1, 21)), flush=True)
        print("the last word", flush=True)
        return int(argument)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if behaviour == "parent":
        subprocess.Popen([sys.executable, "-c", STUBBORN_CHILD + GRANDCHILD + "time.sleep(600)"])
    server = ThreadingHTTPServer((os.environ["VISIONRL_HOST"], int(os.environ["VISIONRL_PORT"])), Handler)
    print(f"listening, {' '.join(sys.argv[1:])}", flush=True)
    if behaviour != "train":
        server.serve_forever()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return train(int(argument))


def train(seconds: int) -> int:
    """One iteration per tick, counted among the checkpoints, up to what the job asks for; runs at least ``seconds``.
    Its report never stands still: nobody computes here, and a run in which nothing moves hangs."""
    run_dir = Path(os.environ["VISIONRL_RUN_DIR"])
    counter, end = run_dir / "checkpoints" / "iteration", time.monotonic() + seconds
    counter.parent.mkdir(exist_ok=True)
    done = int(counter.read_text()) if counter.exists() else 0
    print(f"begins at iteration {done}", flush=True)
    for tick in itertools.count():
        total = json.loads(Path(os.environ["VISIONRL_JOB"]).read_text())["spec"]["training"]["iterations"]
        report["progress"] = {"iteration": done, "total": total, "reward": done / 2, "episodes": tick}
        time.sleep(0.2)
        if done < total:
            done += 1
            draft = counter.with_name(".iteration")
            draft.write_text(str(done))
            draft.replace(counter)  # a kill between emptying and writing would leave a number that is none
        elif time.monotonic() >= end and done in told:
            break
    summary = {"job": "demo", "iterations": done, "episodes": 64 * done, "reward": [0.5, done / 2]}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "report.html").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
