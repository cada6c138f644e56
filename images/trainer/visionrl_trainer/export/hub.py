"""The hub, as one commit: a repository never shows half of a policy."""

from __future__ import annotations

from pathlib import Path

from visionrl.adapters import MANIFEST, Manifest, verified_manifest
from visionrl_trainer.export.copy import ExportError

HUB = "hf://"


def upload_folder(folder: Path, url: str, message: str) -> Manifest:
    """Upload a folder that has a manifest to ``hf://owner/name[/path]``; a new repository is private. The hub checks
    each large file's digest and takes none twice, so a repeated upload goes on where it was. Raises
    :class:`ExportError`; network errors may be retried."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    manifest = verified_manifest(folder)
    owner, _, rest = url.removeprefix(HUB).partition("/")
    name, _, path = rest.partition("/")
    api, repository = HfApi(), f"{owner}/{name}"
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            path_in_repo=path or None,
            allow_patterns=[*manifest.files, MANIFEST],
            commit_message=message,
        )
    except HfHubHTTPError as error:
        raise ExportError(f"{url}: {error}") from None
    return manifest
