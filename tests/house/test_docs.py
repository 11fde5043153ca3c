"""Docs that are checked: generated pages are current, links lead somewhere, examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trimtab.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_generated_pages_are_current() -> None:
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.relative_to(ROOT)}: {link}"


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in menu, page


def commands_in(page: Path) -> list[str]:
    """Lines of shell blocks that call trimtab, without comments."""
    blocks = re.findall(
        r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = [
        re.sub(r"\s+#.*$|\s{3,}.*$", "", line).removeprefix("$ ")
        for block in blocks
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("trimtab ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is parsed as far as its command; the flags that it names must be flags of it."""
    for line in commands_in(page):
        words = line.split()[1:]
        depth = 2 if words[0] in ("scenario", "workload", "moe", "fusion", "rlhf") else 1
        assert main([*words[:depth], "--help"]) == 0, line
        known = capsys.readouterr().out
        for word in words[depth:]:
            if word.startswith("--") and "vidur" not in line:
                assert re.search(rf"{word.split('=')[0]}\b", known), (
                    f"{page.relative_to(ROOT)}: {line}: {word}"
                )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_run(example: Path, tmp_path: Path) -> None:
    text = example.read_text()
    assert len(text.splitlines()) < 40
    assert text.startswith('"""')
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def python_blocks() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        found += [(f"{page.relative_to(ROOT)}:{i}", block) for i, block in enumerate(blocks)]
    return found


@pytest.mark.parametrize(("name", "block"), python_blocks(), ids=lambda value: str(value)[:60].split("\n")[0])
def test_python_in_the_docs_runs(name: str, block: str, tmp_path: Path) -> None:
    if "import" not in block:
        pytest.skip("a fragment")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"
