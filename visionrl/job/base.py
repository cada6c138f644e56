"""What all sections of the job share: names, bounded types, and the strict model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

API_GROUP = "visionrl.dev"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "VisionRLJob"

# Evaluation seeds are below this limit, training and teacher seeds above it: disjoint by construction.
FIRST_TRAINING_SEED = 1_000_000

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", examples=["500m", "16Gi"])]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
# Longest child name is "<job>-inference" plus the pod's hash; 45 leaves room for every suffix within 63.
JobName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=45)]


class Model(BaseModel):
    """Strict, immutable, camelCase in files; unknown keys are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        strict=True,
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
