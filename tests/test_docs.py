"""README and docs: tables are fresh, links lead somewhere, and examples run."""

import re
import sys
import types
from pathlib import Path

import pytest

from zoo import conditions, families
from zoo.commands.families import table
from zoo.data import pipeline
from zoo.diffusion import samplers
from zoo.evaluation import registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
names = lambda page: str(page.relative_to(ROOT))


def test_the_table_of_families_is_that_of_the_registry():
    readme = (ROOT / "README.md").read_text()
    begin, end = "<!-- families: python -m zoo families -->\n", "\n<!-- end of families -->"
    assert begin + table() + end in readme, "paste what `python -m zoo families` prints"


def test_the_readme_is_short_and_begins_with_an_image():
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"```.*?```|^\|.*?$|<!--.*?-->|\]\([^)]*\)", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 700
    assert any(line.startswith("![") for line in text.splitlines()[:8])


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_within_the_project_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, heading in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if target.startswith("http"):
            continue
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), target
        if heading:
            anchors = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()) for line in other.read_text().splitlines()]
            assert heading[1:] in {anchor.replace(" ", "-") for anchor in anchors}, heading


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_the_files_that_are_named_exist(page):
    named = re.findall(r"`((?:zoo|configs|docs|tests|benchmarks)/[\w/.]+)", page.read_text())
    if page.name == "extend.md":
        named = [name for name in named if name != "configs/mean.py"]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_examples_of_the_page_on_extending_run(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), flags=re.DOTALL)
    for registered in (
        families.FAMILIES,
        conditions.CONDITIONS,
        pipeline.SOURCES,
        samplers.SAMPLERS,
        registry.MEASURES,
    ):
        for name in ("midpoint", "contrast", "stripes", "mean"):
            monkeypatch.setitem(registered, name, None)  # which takes the entry away afterwards
            del registered[name]
    module = types.ModuleType("extend_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        exec(compile(block, "docs/extend.md", "exec"), vars(module))  # noqa: S102
    assert len(blocks) == 9
