"""Which container image a component runs: the job's, else the operator's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from visionrl.checks import runs_task_app
from visionrl.job import Component, Job

Images = Mapping[Component, str]
"""A container image for each component."""

FIELDS: Mapping[Component, str] = {"taskApp": "task_app", "inference": "inference", "trainer": "trainer"}


def named(prefix: str, tag: str) -> Images:
    """As ``make images PREFIX= TAG=`` calls them."""
    return {component: f"{prefix}{component.lower()}:{tag}" for component in FIELDS}


RELEASED = named("visionrl/", version("visionrl"))


def images_of(job: Job, defaults: Images = RELEASED) -> Images:
    """The images of the job's components; ``defaults`` where the job names none."""
    return {component: getattr(job.spec, name).image or defaults[component] for component, name in FIELDS.items()}


def refused(images: Images, allowed: Sequence[str]) -> Component | None:
    """The first component whose image begins with none of the ``allowed`` prefixes; no prefixes allow every image."""
    return next((c for c, image in images.items() if allowed and not image.startswith(tuple(allowed))), None)


def with_images(job: Job, defaults: Images) -> Job:
    """The job with every image named that it runs."""
    images = images_of(job, defaults)
    sections = {
        name: getattr(job.spec, name).model_copy(update={"image": images[component]})
        for component, name in FIELDS.items()
        if component != "taskApp" or runs_task_app(job.spec)
    }
    return job.model_copy(update={"spec": job.spec.model_copy(update=sections)})
