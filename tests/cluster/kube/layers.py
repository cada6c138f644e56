"""Keeps the cache of layers from growing: of every tag, what its last build made or used stays, the rest goes.

A build leaves an image without a name for each of its steps, and finds them again when nothing of a step has changed.
"""

import re
from urllib.parse import quote

from .host import cache
from .storage import Storage

STEP = re.compile(r"^--> ([0-9a-f]{11})$", re.MULTILINE)


def note(tag: str, log: str) -> None:
    """Remember the steps of a build from what buildah printed."""
    (cache("steps") / quote(tag, safe="")).write_text("\n".join(STEP.findall(log)))


def sweep(storage: Storage) -> None:
    """Remove the steps that no tag's last build needed, and what builds that were cut off left. No build may run."""
    names = {quote(tag, safe="") for tag in storage.tags()}
    needed: set[str] = set()
    for record in cache("steps").iterdir():
        if record.name in names:
            needed.update(record.read_text().split())
        else:
            record.unlink()
    storage.buildah("rm", "--all")
    unused = [image for image in storage.untagged() if image[:11] not in needed]
    if unused:
        storage.buildah("rmi", *unused)


def keep_newest(storage: Storage, repository: str, count: int) -> None:
    """Take the names from all but the newest images of a repository."""
    old = storage.tags(repository)[count:]
    if old:
        storage.buildah("untag", *old)
