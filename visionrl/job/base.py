"""What all sections of the job share: names, bounded types, and the strict model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

API_GROUP = "visionrl.dev"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "VisionRLJob"

# Evaluation seeds are below this limit, training and teacher seeds above it: disjoint by construction.
FIRST_TRAINING_SEED = 1_000_000

INT64_MAX = 2**63 - 1
MAX_SECONDS = 10 * 365 * 24 * 3600
"""Ten years. Far below the end of the calendar, which a time plus a longer one would pass."""


def _int64(value: int) -> int:
    # Not a `le`: the CRD says it by `format: int64`, and a bound of 19 digits is not a JSON number everywhere.
    if not value <= INT64_MAX:
        raise ValueError("is beyond 64 bits")
    return value


WITHIN_INT64 = AfterValidator(_int64)
PositiveInt = Annotated[int, Field(ge=1), WITHIN_INT64]
NonNegativeInt = Annotated[int, Field(ge=0), WITHIN_INT64]
Seconds = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


def _with_a_port(url: str) -> str:
    """A NetworkPolicy is made of it."""
    try:
        urlsplit(url).port  # noqa: B018
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from None
    return url


WITH_A_PORT = AfterValidator(_with_a_port)


# --- texts that Kubernetes takes


@dataclass(frozen=True)
class Form:
    """Texts of one form: refused in words, and in the schema as a pattern."""

    pattern: str
    longest: int
    words: str
    """What a text must be, after "must be"."""

    def __call__(self, value: str) -> str:
        if len(value) > self.longest or not re.fullmatch(self.pattern, value):
            raise ValueError(f"must be {self.words}")
        return value

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{self.pattern}$", "maxLength": self.longest}


_DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

# Longest child name is "<job>-inference" plus the pod's hash; 45 leaves room for every suffix within 63.
_JOB = Form("[a-z]([-a-z0-9]*[a-z0-9])?", 45, "1 to 45 of a-z, 0-9 and -, a letter first and no - last")
_NAMESPACE = Form(_DNS_LABEL, 63, "a namespace: 1 to 63 of a-z, 0-9 and -, no - first or last")
_OBJECT = Form(_SUBDOMAIN, 253, "an object's name: a-z, 0-9, - and ., as in my-claim")
_QUEUE = Form(_SUBDOMAIN, 63, "a queue's name: 1 to 63 of a-z, 0-9, - and .")  # it is a label's value, too
_KEY = Form(rf"({_SUBDOMAIN}/)?{_NAME}", 317, "a label key, such as team or example.com/team")
_VALUE = Form(rf"({_NAME})?", 63, "a label value: up to 63 of A-Z, a-z, 0-9, -, _ and .")
_DEVICE_ATTRIBUTE = Form(
    rf"{_SUBDOMAIN}/[A-Za-z_][A-Za-z0-9_]{{0,31}}", 96, "a device attribute, such as gpu.nvidia.com/productName"
)
_IMAGE = Form("[A-Za-z0-9][A-Za-z0-9._:/@-]*", 1024, "a container image, such as registry.example/trainer:1.0")
_EXPORT = Form(
    r"(pvc|s3|gs|abfs|hf)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*/?",
    1024,
    "pvc://CLAIM/path, s3://BUCKET/path, gs://…, abfs://… or hf://OWNER/NAME",
)
_SERVER = Form(
    r"https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?",
    1024,
    "a server's URL, such as http://lamp.games.svc:8000, without user, query and fragment",
)
_QUANTITY = Form(r"[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", 32, "a quantity, such as 500m or 16Gi")

JobName = Annotated[str, AfterValidator(_JOB), WithJsonSchema(_JOB.schema)]
Namespace = Annotated[str, AfterValidator(_NAMESPACE), WithJsonSchema(_NAMESPACE.schema)]
ObjectName = Annotated[str, AfterValidator(_OBJECT), WithJsonSchema(_OBJECT.schema)]
QueueName = Annotated[str, AfterValidator(_QUEUE), WithJsonSchema(_QUEUE.schema)]
LabelKey = Annotated[str, AfterValidator(_KEY), WithJsonSchema(_KEY.schema)]
LabelValue = Annotated[str, AfterValidator(_VALUE), WithJsonSchema(_VALUE.schema)]
DeviceAttribute = Annotated[str, AfterValidator(_DEVICE_ATTRIBUTE), WithJsonSchema(_DEVICE_ATTRIBUTE.schema)]
ContainerImage = Annotated[str, AfterValidator(_IMAGE), WithJsonSchema(_IMAGE.schema)]
ExportUrl = Annotated[str, AfterValidator(_EXPORT), WithJsonSchema(_EXPORT.schema)]
ServerUrl = Annotated[str, AfterValidator(_SERVER), WITH_A_PORT, WithJsonSchema(_SERVER.schema)]
Quantity = Annotated[str, AfterValidator(_QUANTITY), WithJsonSchema(_QUANTITY.schema)]


class Model(BaseModel):
    """Strict, immutable, camelCase in files; unknown keys are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
