"""A version on its way to a server: publish, fetch over loopback, check; an adapter of Qwen3-VL-4B's size.

    python -m tests.bench.sync [--rounds 5] [--json FILE]

The trainer's own store and service and the server's own fetch and check, with 33 million parameters of rank 16 in
bfloat16 (66 MB), on this machine's disk. vLLM's loading of the files and the canary's request are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.bench.common import median, spread, write
from tests.support.ports import free_port
from tests.support.true_width import true_width_config
from visionrl.status import TrainerReport
from visionrl_inference.adapters.check import check_adapter
from visionrl_inference.fetch import fetch_folder, fetch_manifest, trainer_client
from visionrl_trainer.sync.publish import AdapterStore
from visionrl_trainer.sync.service import StatusPublisher, application, serve

KEY = "bench-key"
RANK = 16


class StandInPolicy:
    """What publishing needs of a policy."""

    def __init__(self) -> None:
        text: Any = true_width_config(36, 24).text_config
        hidden, heads, wide = text.hidden_size, text.num_attention_heads, text.intermediate_size
        query, key = heads * text.head_dim, text.num_key_value_heads * text.head_dim
        shapes = {
            "self_attn.q_proj": (hidden, query),
            "self_attn.k_proj": (hidden, key),
            "self_attn.v_proj": (hidden, key),
            "self_attn.o_proj": (query, hidden),
            "mlp.gate_proj": (hidden, wide),
            "mlp.up_proj": (hidden, wide),
            "mlp.down_proj": (wide, hidden),
        }
        self.base: dict[str, tuple[int, int]] = {}
        self.weights: dict[str, torch.Tensor] = {}
        for layer in range(text.num_hidden_layers):
            for name, (inside, outside) in shapes.items():
                module = f"model.language_model.layers.{layer}.{name}"
                self.base[f"{module}.weight"] = (outside, inside)
                for side, shape in (("A", (RANK, inside)), ("B", (outside, RANK))):
                    self.weights[f"base_model.model.{module}.lora_{side}.weight"] = 0.01 * torch.randn(shape)

    def save_adapter(self, folder: Path) -> None:
        """As a policy in bfloat16 writes it; each time other weights."""
        for weight in self.weights.values():
            weight += 0.01
        save_file({k: v.to(torch.bfloat16) for k, v in self.weights.items()}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config))


async def measure(rounds: int) -> list[dict[str, Any]]:
    """Seconds of each part, by the clock and of the processor; the first round warms up."""
    policy, port = StandInPolicy(), free_port()
    parts: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        store = AdapterStore(root / "adapters", "bench")
        publisher = StatusPublisher(TrainerReport(phase="Training"))
        publisher.adapters = store
        (root / "server").mkdir()
        async with serve(application(publisher, KEY), "127.0.0.1", port):
            for number in range(1 + rounds):
                began, cpu = time.perf_counter(), time.process_time()

                def note(part: str, began: float = began, cpu: float = cpu) -> None:
                    parts.setdefault(part, []).append((time.perf_counter() - began, time.process_time() - cpu))

                version = await asyncio.to_thread(store.publish, policy, number)  # type: ignore[arg-type]
                note("publish")
                path = f"/adapters/{version.name}"
                async with trainer_client(f"http://127.0.0.1:{port}", KEY) as client:
                    manifest = await fetch_manifest(client, path)
                    target = root / "server" / version.name
                    await fetch_folder(client, path, manifest, target, lambda f: check_adapter(f, policy.base, RANK))
                note("publish, fetch, check")
                store.prune([])
    return [
        {
            "what": part,
            "seconds": round(median([wall for wall, _ in values[1:]]), 3),
            "cpu_s": round(median([cpu for _, cpu in values[1:]]), 3),
            "spread": round(spread([wall for wall, _ in values[1:]]), 3),
            "mb": round(manifest.size / 1e6, 1),
        }
        for part, values in parts.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = asyncio.run(measure(arguments.rounds))
    for row in rows:
        print(
            f"{row['what']:24}{row['seconds']:8.3f} s  {row['cpu_s']:.3f} CPU s  {row['mb']} MB  ± {row['spread']:.0%}"
        )
    write(arguments.json, "sync", {"rows": rows})


if __name__ == "__main__":
    main()
