"""The documentation site is made from the guides with one command, whole and without a word to the network."""

import re
import subprocess
import sys
from urllib.parse import unquote

import pytest

from conftest import ROOT

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    finished = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out], cwd=ROOT,
                              capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return out


def test_every_guide_is_a_page_and_every_link_leads_somewhere(site):
    guides = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages = [str(path.relative_to(ROOT).with_suffix(".html")).replace("README", "index") for path in guides]
    for page in map(site.joinpath, pages):
        text = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"#?:]+)["#?]', text):
            assert (page.parent / unquote(target)).exists() or target == ".", f"{page.name}: {target}"


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=\"(\w+:)?//|<link[^>]*href=\"https?://", page.read_text())
        assert not loaded, page.name


def test_an_average_is_no_tag(site):
    assert "&lt;exp(-beta dH)&gt;" in (site / "docs/RESULTS.html").read_text()
