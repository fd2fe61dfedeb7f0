"""The wheel carries configs/ and data/ inside the package; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"configs": "*.yaml", "data": "*.smi"}


class BuildWithConfigs(build_py):
    """Copies the shipped folders of the repository into the package that is built; an editable install has them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in SHIPPED.items():
            target = Path(self.build_lib) / "kstep" / folder
            target.mkdir(parents=True, exist_ok=True)
            for file in Path(folder).glob(pattern):
                shutil.copy(file, target)


setup(cmdclass={"build_py": BuildWithConfigs})
