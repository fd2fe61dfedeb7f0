"""Every script that reads a YAML takes --set key=value, and says so when the key is none of its config's."""

import re
import runpy
import sys

import pytest

from conftest import ROOT

SCRIPTS = [*sorted(path.name for path in (ROOT / "src").glob("0*.py")), "qmmm_example.py"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_with_a_config_takes_set(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "src" / name), run_name="__main__")
    flags = capsys.readouterr().out
    assert ("--set KEY=VALUE" in flags) == bool(re.search(r"--(\w+-)?config ", flags)), name


@pytest.mark.parametrize("name, arguments", [
    ("07_benchmark.py", ["--molecule", "MOLECULE", "--out-dir", "OUT"]),
    ("qmmm_example.py", ["--out", "OUT/x.npz"])])
def test_an_unknown_key_is_answered(name, arguments, monkeypatch, capsys, tmp_path, prepared):
    arguments = [word.replace("MOLECULE", str(prepared)).replace("OUT", str(tmp_path)) for word in arguments]
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--set", "temperatureK=400"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "src" / name), run_name="__main__")
    assert ended.value.code == 2 and "did you mean 'temperature_K'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from kstep.molecules.prepare import prepare_molecule, write_prepared

    folder = tmp_path_factory.mktemp("raw")
    write_prepared(prepare_molecule("water", "O", seed=0), folder)
    return folder / "water"
