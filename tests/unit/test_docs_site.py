"""The documentation: generated pages are current, all pages are in the site."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from recipes.job_reference import reference

ROOT = Path(__file__).parents[2]


def test_the_jobs_reference_is_what_the_model_says() -> None:
    assert (ROOT / "docs" / "job.md").read_text() == reference(), "make docs-reference"


def test_every_page_is_in_the_site() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = {page.name for page in ROOT.glob("docs/*.md")}
    assert set(re.findall(r"[\w-]+\.md", str(site["nav"]))) == pages, "nav in zensical.toml"
