"""The three components: container images, resources, GPUs, and vLLM's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionrl.job.base import (
    WITHIN_INT64,
    ContainerImage,
    DeviceAttribute,
    LabelKey,
    LabelValue,
    Model,
    ObjectName,
    PositiveInt,
    Quantity,
    Seconds,
    ServerUrl,
)

Argument = Annotated[str, Field(min_length=1, max_length=4096)]


class Resources(Model):
    """Requests and, where given, limits of the component's container."""

    cpu: Quantity = "1"
    """CPU request."""
    memory: Quantity = "2Gi"
    """Memory request and limit."""
    ephemeral_storage: Quantity | None = None
    """Local disk request and limit."""


class Toleration(Model):
    """A Kubernetes toleration."""

    key: LabelKey | None = None
    """Taint key; empty with operator Exists matches every taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether `value` is compared."""
    value: LabelValue | None = None
    """Taint value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches every effect."""


class DeviceClaim(Model):
    """GPUs by dynamic resource allocation (`resource.k8s.io/v1`, Kubernetes 1.34), from a driver instead of a device
    plugin."""

    device_class: ObjectName = "gpu.nvidia.com"
    """DeviceClass that is claimed."""
    product_attribute: DeviceAttribute = "gpu.nvidia.com/productName"
    """Attribute of devices that `products` are compared with, spaces written as hyphens."""


class Gpu(Model):
    """GPUs of a component and the nodes that have them."""

    count: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs of the pod."""
    products: list[LabelValue] = Field(default_factory=lambda: ["NVIDIA-H200"])
    """Accepted values of the node label `product_label`; empty accepts any node."""
    product_label: LabelKey = "nvidia.com/gpu.product"
    """Node label that names the product (GPU feature discovery)."""
    resource_name: LabelKey = "nvidia.com/gpu"
    """Extended resource that is requested."""
    tolerations: list[Toleration] = Field(default_factory=lambda: [Toleration(key="nvidia.com/gpu")])
    """Tolerations for GPU nodes."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass, where the cluster needs one for GPUs."""
    resource_claim: DeviceClaim | None = None
    """Claims the GPUs by dynamic resource allocation, in place of `resource_name` and `product_label`."""


TASKAPP_KEY = "VISIONRL_TASKAPP_KEY"
"""Variable of trainer and inference with the key of a task app that runs elsewhere."""


class SecretKey(Model):
    """A key of a Secret in the job's namespace."""

    name: ObjectName
    """The Secret."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Its key."""
    optional: bool = False
    """The container starts without it, too."""


class TaskApp(Model):
    """The environment server."""

    url: ServerUrl | None = None
    """A server that speaks the rollout contract (docs/rollout.md) and runs already: the job starts no task app. It must
    reach the job's inference server."""
    key_secret: SecretKey | None = None
    """With `url`: the key that this server asks for, and with which it asks the job's inference server. On one machine,
    the variable VISIONRL_TASKAPP_KEY has it instead."""
    image: ContainerImage | None = None
    """Container image; empty takes the operator's (chart value `jobImages`), which the job keeps."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64)] | None = None
    """Starts another server that speaks the rollout contract (docs/rollout.md); empty starts this project's."""
    resources: Resources = Resources()


class ImageLimits(Model):
    """Multi-modal items that one prompt may carry."""

    image: Annotated[int, Field(ge=0, le=64)] = 1
    """Images per prompt."""


class Vllm(Model):
    """vLLM's engine arguments. Those that other fields of the job determine (model, adapters, keys) are not listed."""

    tensor_parallel_size: PositiveInt = 1
    """GPUs over which one copy of the model is split."""
    max_model_len: Annotated[int, Field(ge=128), WITHIN_INT64] = 4096
    """Longest prompt plus completion, in tokens."""
    limit_mm_per_prompt: ImageLimits = ImageLimits()
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM uses."""
    max_num_seqs: PositiveInt = 64
    """Largest number of sequences that are decoded together."""
    api_server_count: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that take requests, tokenize, prepare images and write answers for the one engine. Each wants a core of
    `resources.cpu`, the engine another. docs/quickstart-gpu.md says what one bears."""
    enforce_eager: bool = False
    """Skip CUDA graphs: faster start, slower decoding."""
    cpu_kv_cache_gib: PositiveInt = 1
    """KV cache of the CPU backend, in GiB; ignored on a GPU."""
    extra_args: list[str] = Field(default_factory=list)
    """Further arguments of the vLLM server, in order; arguments that other fields of the job determine are refused."""


class Inference(Model):
    """The vLLM server. Without `gpu` it runs vLLM's CPU backend."""

    image: ContainerImage | None = None
    """Container image; empty takes the operator's."""
    gpu: Gpu | None = None
    vllm: Vllm = Vllm()
    resources: Resources = Resources(cpu="4", memory="32Gi")
    startup_timeout_seconds: Seconds = 1800
    """Time that loading the model may take before the container is restarted."""


class Trainer(Model):
    """The trainer. Without `gpu` it trains on the CPU."""

    image: ContainerImage | None = None
    """Container image; empty takes the operator's."""
    gpu: Gpu | None = None
    resources: Resources = Resources(cpu="4", memory="32Gi")
