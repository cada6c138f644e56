"""``visionrl run`` with :mod:`tests.support.sampling_inference` in vLLM's place: ``FILE --runs DIR``.

For machines where vLLM is not installed. A job there asks for a GPU for its trainer alone; the server uses the same.
"""

from __future__ import annotations

import sys

from tests.support.exact_run import run_with
from visionrl_local.gpus import visible_gpus

if __name__ == "__main__":
    # The executor hides the GPUs from a component that asks for none.
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(visible_gpus())}
    sys.exit(run_with("inference", "tests.support.sampling_inference", environment=devices))
