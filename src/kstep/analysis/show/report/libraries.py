"""JavaScript of installed packages, packed so that a page carries it: gzip, then base64; the page unpacks it itself.

plotly.js comes with `plotly` (MIT); 3Dmol.js (BSD-3-Clause, doi:10.1093/bioinformatics/btu829) within the bundle of
`chemiscope` (BSD-3-Clause), which leaves it as window.$3Dmol; no package of its own carries its code.
"""

from __future__ import annotations

import base64
import gzip
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from kstep.errors import UserError

LIBRARIES = {"plotly": "plotly/package_data/plotly.min.js", "chemiscope": "chemiscope/sphinx/static/chemiscope.min.js"}


def packed(package: str) -> str:
    """The script of a package of LIBRARIES as base64 of gzip; UserError where the package is not there."""
    try:
        script = Path(str(distribution(package).locate_file(LIBRARIES[package]))).read_bytes()  # without importing it
    except (PackageNotFoundError, FileNotFoundError):
        raise UserError(f"a report carries the JavaScript of the package '{package}', which is not installed or of "
                        f"another version than this one knows; pip install '{package}'") from None
    return base64.b64encode(gzip.compress(script, mtime=0)).decode()
