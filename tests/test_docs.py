"""What README and docs say can be followed: links lead somewhere, and every command is one of this version."""

import re
import shlex
from pathlib import Path

import pytest

import fedspact
from spact_models.run_config import default_config, parse_assignment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [file for name in ("spact_models", "client", "server", "simulations") for file in (ROOT / name).rglob("*.py")]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith(("http:", "https:", "mailto:"))]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_pages_that_the_program_names_exist():
    named = {name for file in SOURCES for name in re.findall(r"docs/\w+\.md", file.read_text())}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def commands(page: Path) -> list[str]:
    """The fedspact commands in a page's bash blocks: comments dropped, continued lines joined, `&&` taken apart."""
    lines = "\n".join(BLOCK.findall(page.read_text())).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.partition("  # ")[0].split("&&")]
    return [part for part in parts if part.startswith("fedspact ")]


ALL = [(page.stem, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:60]}" for page, command in ALL])
def test_a_command_in_the_docs_is_one_of_this_version(page, command):  # noqa: ARG001 (names the test)
    _, verb, *words = shlex.split(command, comments=True)
    args = fedspact.build_parser(verb).parse_args(words)  # exits, with a message, at a flag that is not there
    assigned = [parse_assignment(text)[0] for text in getattr(args, "assignments", None) or ()]
    assert [key for key in assigned if key not in default_config()] == []


def test_there_are_commands_to_check():
    assert len(ALL) > 30
