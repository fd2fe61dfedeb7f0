"""Recipes do what they say: the notebook runs and holds what it computed; the calculator of one's own is one."""

import json
import re
import runpy

import numpy as np
import pytest

from conftest import ROOT
from kstep.forces import calculator_spec, check_spec
from kstep.forces.ase import AseConfig, allow_calculators
from test_guides import FAST_LEARNING

RECIPES = ROOT / "docs/recipes"
NOTEBOOK = RECIPES / "from_a_notebook.ipynb"
# what makes it fast, and leaves it the same notebook: (as written, as run)
FASTER = [('"OCCF", {}',
           '"OCCF", dict(workers=1, steps=6, burn_in_steps=1, replicas=8, tune=False, moves=2, k_steps=40)'),
          ("learning = True", 'learning = "fast_learn.yaml"')]


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast_learn.yaml").write_text(FAST_LEARNING)
    text = "\n".join("".join(cell["source"]) for cell in cells("code"))
    for written, run in FASTER:
        assert written in text
        text = text.replace(written, run)
    (tmp_path / "cells.py").write_text(f"if __name__ == '__main__':\n{re.sub('^', '    ', text, flags=re.M)}")
    runpy.run_path(str(tmp_path / "cells.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "fluoroethanol, GFN2-xTB at 300 K: " in out and "of the ensemble" in out
    assert (tmp_path / "fluoroethanol_conformers.sdf").is_file() and (tmp_path / "fluoroethanol.html").is_file()


def test_the_notebook_holds_what_it_computed_and_is_small():
    code = cells("code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for cell in code for each in cell["outputs"] for kind in each.get("data", {})}
    assert "image/png" in kinds and not [each for cell in code for each in cell["outputs"]
                                         if each["output_type"] == "error" or each.get("name") == "stderr"]
    shown = "".join("".join(each.get("text", "")) for cell in code for each in cell["outputs"])
    assert "converged" in shown and str(ROOT) not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 300_000


def test_the_calculator_of_the_recipe_is_the_mean_of_its_members(ethanol, tmp_path, monkeypatch):
    from tblite.ase import TBLite

    text = (RECIPES / "my_own_calculator.md").read_text()
    module = re.search(r"```python\n# my_calculator.py\n(.*?)```", text, re.S)[1]
    (tmp_path / "my_calculator.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("KSTEP_ALLOW_CALCULATOR", "")
    from my_calculator import Committee

    spec = calculator_spec(Committee, ethanol)
    check_spec(spec, ethanol)
    assert spec.method == "my_calculator:Committee()" or "my_calculator:Committee" in spec.method
    found = spec.build().energy_and_forces(ethanol.conformers[0])
    members = [calculator_spec(TBLite(method=method, accuracy=0.1, verbosity=0), ethanol).build().energy_and_forces(
        ethanol.conformers[0]) for method in ("GFN1-xTB", "GFN2-xTB")]
    for n in range(2):
        assert found[n] == pytest.approx(np.mean([member[n] for member in members], axis=0), rel=1e-6, abs=1e-3)
    config = re.search(r"```yaml\n(.*?)```", text, re.S)[1]
    allow_calculators(["my_calculator:Committee"])
    import yaml

    named = AseConfig(**yaml.safe_load(config))
    assert named.method == "my_calculator:Committee(accuracy=0.1)"
