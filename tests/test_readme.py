"""README: its numbers are the plan's, and what it links to is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sidlsg.formats import about, amount
from sidlsg.planning.offers import offers, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_list_of_presets_is_what_the_command_prints() -> None:
    block = re.search(r"<!-- presets list -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert block is not None
    assert block[1] == "\n".join(table(None))


@pytest.mark.parametrize("name", ["16gb", "24gb", "48gb", "h100-bf16"])
def test_what_a_day_a_week_and_a_full_run_are_is_the_plans(name: str) -> None:
    (row,) = re.findall(rf"^\| [^|]* \| `{name}` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", README, re.MULTILINE)
    offer = next(offer for offer in offers() if offer.name == name)
    rate = offer.per_second
    assert rate is not None
    assert offer.config.images == 10_000_000
    days = offer.config.images / rate / 86400
    week = amount(rate * 7 * 86400) if days > 7 else "–"
    assert row == (amount(rate * 86400), week, about(days * 86400).removeprefix("about "))


def test_links_inside_the_repository_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_package_names_the_paper_and_its_authors_code_as_the_readme_does() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert len(urls) == 2
    assert all(f"]({url})" in README for url in urls.values())
