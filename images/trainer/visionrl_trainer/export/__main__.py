"""``python -m visionrl_trainer.export``: copy the trained policy to where ``spec.storage.export`` says."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from visionrl.adapters import Manifest
from visionrl.base_model import locate_base
from visionrl.checks import exports_base
from visionrl.component import EXIT_CONFIGURATION, ComponentContext, ConfigurationError
from visionrl.job import Export
from visionrl.trained import NothingTrained, Trained, newest
from visionrl_trainer.export.copy import ExportError, copy_folder, described, termination_message
from visionrl_trainer.export.hub import HUB, upload_folder

CLAIM_URL = "pvc://"
EXIT_FAILED = 1
TERMINATION_LOG = Path("/dev/termination-log")

logger = logging.getLogger("visionrl_trainer.export")

DESCRIPTION = """Copy the trained policy out of the run folder: spec.storage.export of the job.

Configured by environment variables, which the operator sets: VISIONRL_JOB, VISIONRL_RUN_DIR, VISIONRL_CACHE_DIR, and
VISIONRL_EXPORT_DIR, the folder under which the claims of pvc:// addresses are mounted by name; credentials as the
object store's client and the hub's read them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, HF_TOKEN).
Run again, it goes on where it was. Exit codes: 0 copied, 1 failed and worth another try, 2 it cannot work.
"""


def main() -> int:
    """Copy what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m visionrl_trainer.export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    try:
        _export(ComponentContext.from_environment())
    except (ConfigurationError, NothingTrained) as error:
        logger.error("%s", error)
        return EXIT_CONFIGURATION
    except Exception as error:  # whatever a file system raises: its last line is what the status shows
        logger.error("%s", f"{type(error).__name__}: {error}".splitlines()[0])
        return EXIT_FAILED
    return 0


def _export(context: ComponentContext) -> None:
    job = context.job()
    wanted, trained = job.spec.storage.export or Export(), newest(context.run_dir, job.name)
    copies: list[dict[str, Any]] = []
    if wanted.adapter:
        manifest = _put(context, trained.folder, wanted.adapter, trained)
        copies.append(described(wanted.adapter, manifest))
    if wanted.merged_model:
        from visionrl_trainer.export.merge import merge  # torch: not needed for the adapter alone

        base = context.run_dir / "base" if exports_base(job.spec) else locate_base(job, context.cache_dir)
        with tempfile.TemporaryDirectory(prefix="merged-") as folder:
            merge(base, trained.folder, Path(folder))
            manifest = _put(context, Path(folder), wanted.merged_model, trained)
        copies.append(described(wanted.merged_model, manifest))
    for copy in copies:
        logger.info("%s holds %s: sha256 %s", copy["to"], trained.version.name, copy["digest"])
    if TERMINATION_LOG.is_file():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(termination_message(copies, trained.version.name), encoding="utf-8")


def _put(context: ComponentContext, folder: Path, url: str, trained: Trained) -> Manifest:
    if url.startswith(HUB):
        return upload_folder(folder, url, f"{trained.version.name}, trained with VisionRL")
    if url.startswith(CLAIM_URL):
        claims = Path(context.variables.get("VISIONRL_EXPORT_DIR", ""))
        place = (claims / url.removeprefix(CLAIM_URL)).resolve()
        if not place.is_relative_to(claims.resolve()):
            raise ExportError(f"{url} leads out of its claim")
        return copy_folder(folder, str(place))
    return copy_folder(folder, url)


if __name__ == "__main__":
    sys.exit(main())
