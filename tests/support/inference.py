"""A real inference server in its own process group, and a LoRA adapter for the tiny model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import psutil
from PIL import Image

from tests.support.ports import free_port
from tests.support.trainer import named_by_content
from visionrl.job import Job

KEY = "the-key-of-this-job"
JOB_NAME = "crafter-tiny"
STARTUP_SECONDS = 300.0
SEEN_WHOLE = 1e-4
"""Largest difference of a logprob between vLLM and transformers, nats, in float32."""

LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


def tiny_job(vllm: dict[str, Any] | None = None, **spec: Any) -> Job:
    """A job on the tiny model at 144 px, with vLLM settings and further sections in the file's spelling."""
    return Job.model_validate(
        {
            "apiVersion": "visionrl.dev/v1alpha1",
            "kind": "VisionRLJob",
            "metadata": {"name": JOB_NAME},
            "spec": {
                "model": {"base": "tiny", "dtype": "float32"},
                "inference": {"vllm": {"maxModelLen": 512, "maxNumSeqs": 32, **(vllm or {})}},
                "rollout": {"envConfig": {"imageSize": 144}, "policyConfig": {"maxTokens": 16}},
                "training": {"iterations": 1},
                **spec,
            },
        }
    )


def random_frame(seed: int, size: int = 144) -> np.ndarray:
    """A frame of noise, uint8 [size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def image_part(frame: np.ndarray) -> dict[str, Any]:
    """The frame as the part of a chat message."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def chat_body(model: str, frame: np.ndarray, **more: Any) -> dict[str, Any]:
    """A decision as the task app asks for one: a frame, token ids, logprobs, the whole distribution."""
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": "Play Crafter."},
            {"role": "user", "content": [image_part(frame)]},
        ],
        "max_tokens": 13,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "logprobs": True,
        "return_token_ids": True,
        **more,
    }


def make_adapter(model_dir: Path, target: Path, seed: int, scale: float = 0.3) -> None:
    """Save a random LoRA adapter (r 8) as peft does; ``scale`` is the standard deviation of lora_B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(model_dir), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, scale)
    model.save_pretrained(str(target))
    (target / "README.md").unlink(missing_ok=True)


def logprobs_by_transformers(
    model_dir: Path, adapter: Path | None, prompt_ids: list[int], token_ids: list[int], frame: np.ndarray
) -> list[float]:
    """Logprobs of the sampled ids, teacher-forced with transformers and peft."""
    import torch
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model_dir)
    base = AutoModelForImageTextToText.from_pretrained(model_dir)
    model = base if adapter is None else PeftModel.from_pretrained(base, str(adapter))
    ids = torch.tensor([prompt_ids + token_ids])
    image = processor.image_processor(images=[Image.fromarray(frame)], return_tensors="pt")
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == processor.image_token_id).int(),
            pixel_values=image["pixel_values"],
            image_grid_thw=image["image_grid_thw"],
        ).logits[0, len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()


def publish_adapter(model_dir: Path, adapters: Path, number: int, job: str = JOB_NAME) -> str:
    """The name of a random adapter, another one for each number, that a trainer with this folder now has."""
    make_adapter(model_dir, adapters / "draft", seed=number)
    return named_by_content(adapters / "draft", job, number)


class InferenceServer:
    """``python -m visionrl_inference`` for a job, until :meth:`stop` or :meth:`kill`."""

    module = "visionrl_inference"

    def __init__(self, job: Job, folder: Path, trainer_url: str) -> None:
        self.job, self.folder, self.trainer_url = job, folder, trainer_url
        self.process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.cache = folder / "cache"
        self.log = folder / "inference.log"
        (folder / "job.json").write_text(job.model_dump_json(by_alias=True))
        (folder / "key").write_text(KEY)

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "VISIONRL_JOB": str(self.folder / "job.json"),
            "VISIONRL_KEY_FILE": str(self.folder / "key"),
            "VISIONRL_TRAINER_URL": self.trainer_url,
            "VISIONRL_CACHE_DIR": str(self.cache),
            "VISIONRL_HOST": "127.0.0.1",
            "VISIONRL_PORT": str(self.port),
        }

    def start(self) -> float:
        """Start and wait until it is healthy; returns the seconds this took."""
        started = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while time.monotonic() - started < STARTUP_SECONDS:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self._tail()}")
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return time.monotonic() - started
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"the server was not healthy after {STARTUP_SECONDS} s:\n{self._tail()}")

    def stop(self) -> int:
        """SIGTERM to the server, as Kubernetes ends it; returns its exit code. Nothing of its group is left."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.kill()

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> int:
        """Its exit code, when it has ended by itself."""
        assert self.process is not None
        return self.process.wait(STARTUP_SECONDS)

    def kill(self) -> None:
        """SIGKILL to the whole process group: vLLM's engine would outlive its API server."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @property
    def pid(self) -> int:
        """The server's process, leader of its group."""
        assert self.process is not None
        return self.process.pid

    def engine(self) -> psutil.Process:
        """vLLM's engine, a child of its API server."""
        [engine] = [each for each in psutil.Process(self.pid).children() if "EngineCore" in each.name()]
        return engine

    def api_servers(self) -> list[psutil.Process]:
        """vLLM's API servers, where there are several: children of the process that started them."""
        return [each for each in psutil.Process(self.pid).children() if "APIServer" in each.name()]

    def client(self, key: str = KEY) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def load_client(self, concurrency: int, answer_seconds: float) -> aiohttp.ClientSession:
        """For so many requests in flight, each answered in time; httpx's pool would take more processor time than the
        server. Made in a running event loop."""
        return aiohttp.ClientSession(
            base_url=self.url,
            headers={"Authorization": f"Bearer {KEY}"},
            connector=aiohttp.TCPConnector(limit=concurrency),
            timeout=aiohttp.ClientTimeout(total=answer_seconds),
            trust_env=False,
        )

    def last_words(self) -> str:
        """The last line of its log, which a job's status shows."""
        return self._tail().rstrip().rpartition("\n")[2]

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


def sampled(answer: httpx.Response) -> tuple[list[int], list[int], list[float]]:
    """Prompt ids, sampled ids and their logprobs of a chat completion."""
    assert answer.status_code == 200, answer.text
    data = json.loads(answer.text)
    choice = data["choices"][0]
    return data["prompt_token_ids"], choice["token_ids"], [t["logprob"] for t in choice["logprobs"]["content"]]


def complete(client: httpx.Client, model: str, frame: np.ndarray) -> tuple[list[int], list[int], list[float]]:
    """Prompt ids, sampled ids and their logprobs of a decision about a frame."""
    return sampled(client.post("/v1/chat/completions", json=chat_body(model, frame)))
