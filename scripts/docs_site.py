"""What mkdocs.yml does not say: the pages of the site are the guides of the repository, where they lie."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CODE_OR_AVERAGE = re.compile(r"(```.*?```|`[^`\n]*`)|<(?=exp\()", flags=re.S)  # <exp(-dH/kT)> is no tag of HTML
PLACE = importlib.util.spec_from_file_location("make_api_reference", ROOT / "scripts" / "make_api_reference.py")
api_reference = importlib.util.module_from_spec(PLACE)
PLACE.loader.exec_module(api_reference)
DESCRIBED = api_reference.places()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


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
    """The text of a page, its averages kept from being read as tags; the reference is that of mkdocstrings."""
    if page.file.src_uri == "API_REFERENCE.md":
        return api_reference.for_mkdocstrings()
    return CODE_OR_AVERAGE.sub(lambda match: match[1] or "&lt;", markdown)


class Docstrings(griffe.Extension):
    """For mkdocstrings: docstrings are plain text, in which <name> is no tag and an equation keeps its lines.

    A class of the reference shows its fields as they are written, with their comments.
    """

    def on_object(self, *, obj, **_):
        if not obj.docstring:
            return
        lines = api_reference.markdown(obj.docstring.value)
        if obj.is_class and obj.path in DESCRIBED:
            file, node = DESCRIBED[obj.path]
            lines += api_reference.fields(node, file)
        obj.docstring.value = "\n".join(lines)
