"""What mkdocs.yml does not say: the pages of the site are the guides of the repository, where they lie."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CODE_OR_AVERAGE = re.compile(r"(```.*?```|`[^`\n]*`)|<(?=exp\()", flags=re.S)  # <exp(-dH/kT)> is no tag of HTML
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def linked(page: Path) -> set[Path]:
    """Files of the repository that a page links to or shows, other pages left out."""
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    files = {(page.parent / target).resolve() for target in targets}
    return {file for file in files if file.is_file() and file not in PAGES}


def on_files(files, config):
    """Add the guides, and what they link to, under the paths that they have in the repository."""
    for path in [*PAGES, *sorted(set().union(*map(linked, PAGES)))]:
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """The text of a page, its averages kept from being read as tags."""
    return CODE_OR_AVERAGE.sub(lambda match: match[1] or "&lt;", markdown)
