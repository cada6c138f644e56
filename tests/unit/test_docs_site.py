"""The documentation: generated pages are current, all pages are in the site, commands exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from recipes.job_reference import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"```(?:sh|bash|console)\n(.*?)```", re.DOTALL)


def test_the_jobs_reference_is_what_the_model_says() -> None:
    assert (ROOT / "docs" / "job.md").read_text() == reference(), "make docs-reference"


def test_every_page_is_in_the_site() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = {page.name for page in ROOT.glob("docs/*.md")}
    assert set(re.findall(r"[\w-]+\.md", str(site["nav"]))) == pages, "nav in zensical.toml"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(BLOCK.findall(page.read_text()))
    assert set(re.findall(r"^\s*(?:sudo )?make ([a-z][\w-]*)", commands, re.MULTILINE)) <= targets
    for file in re.findall(r"\b((?:configs|charts|recipes|requirements)/[\w./-]+)", commands):
        assert (ROOT / file).exists(), f"{page.name} names {file}"
