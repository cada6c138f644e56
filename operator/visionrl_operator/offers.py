"""What the cluster has for the operator: the definition of jobs, and what only some clusters have."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from visionrl_core.kinds import CLAIM_TEMPLATE, JOB, Kind, Kueue, Offered
from visionrl_operator.api import Api, ApiError
from visionrl_operator.options import Options

DEFINITION_CHECK_SECONDS = 5.0
OFFER_CHECK_SECONDS = 300.0

logger = logging.getLogger("visionrl_operator")


class MoreIsOffered(Exception):
    """The cluster has something now that it had not when this process began."""


async def wait_for_definition(api: Api, options: Options) -> None:
    """Without the CustomResourceDefinition, kopf would wait for ever without a word."""
    logged = False
    while True:
        try:
            await api.list(JOB, options.namespaces[0] if options.namespaces else None, limit=1)
            return
        except ApiError as error:
            if not logged:
                hint = "; apply crds/ first" if error.status == 404 else ""
                logger.warning("waiting for %s.%s: %s%s", JOB.plural, JOB.group, error, hint)
            logged = True
        await asyncio.sleep(DEFINITION_CHECK_SECONDS)


async def find(api: Api, options: Options, log_level: int = logging.INFO) -> Offered:
    """Which of the kinds that not every cluster has are there, and may be used."""
    groups = (await api.groups())["groups"]
    served = {f"{group['name']}/{version['version']}" for group in groups for version in group["versions"]}
    kueue = next((Kueue(f"{Kueue.GROUP}/{v}") for v in Kueue.VERSIONS if f"{Kueue.GROUP}/{v}" in served), None)
    if kueue is None:
        logger.log(log_level, "the cluster has no Kueue: jobs with spec.queueName wait")
    elif refusal := await _refusal(api, options, kueue.workload):
        logger.log(log_level, "Kueue is not used, jobs with spec.queueName wait: %s (chart: kueue.enabled)", refusal)
        kueue = None
    claims = CLAIM_TEMPLATE.api_version in served
    if claims and (refusal := await _refusal(api, options, CLAIM_TEMPLATE)):
        logger.log(log_level, "gpu.resourceClaim is refused: %s (chart: resourceClaims.enabled)", refusal)
        claims = False
    return Offered(kueue, claims)


async def _refusal(api: Api, options: Options, kind: Kind) -> str:
    """Why objects of a kind cannot be read; empty where they can."""
    try:
        await api.list(kind, options.namespaces[0] if options.namespaces else None, limit=1)
    except ApiError as error:
        return str(error)
    return ""


async def more(api: Api, options: Options, offered: Offered) -> None:
    """Raise :class:`MoreIsOffered` once something is there that was not: the next process watches it from the start."""
    while True:
        await asyncio.sleep(OFFER_CHECK_SECONDS)
        with contextlib.suppress(ApiError):
            found = await find(api, options, logging.DEBUG)
            if found.kueue is not None and offered.kueue is None:
                raise MoreIsOffered("Kueue is there now: a restart is needed to watch it")
            if found.claim_templates and not offered.claim_templates:
                raise MoreIsOffered("resource claims are there now: a restart is needed to watch them")
