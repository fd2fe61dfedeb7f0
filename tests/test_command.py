"""The kstep command: help, version, exit codes, and configs and commands that a wheel brings anywhere."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from conftest import ROOT, run_program, run_python
from kstep import __version__
from kstep.cli import COMMANDS, main
from kstep.config import read_yaml
from kstep.shipped import find_config, find_molecules


def kstep(*words, cwd=ROOT, expect=0):
    finished = run_program("-m", "kstep", *words, cwd=cwd)
    assert finished.returncode == expect, finished.stdout[-1000:] + finished.stderr[-1000:]
    assert "Traceback" not in finished.stderr
    return finished


def test_alone_it_shows_its_commands_in_the_order_of_the_pipeline(capsys):
    assert main([]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert shown == list(COMMANDS)
    pipeline = ["prepare", "baseline", "dataset", "train", "sample", "evaluate", "benchmark"]
    assert [name for name in shown if name in pipeline] == pipeline


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"kstep {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: kstep {name} " in out and "show this help message" in out
    assert "==SUPPRESS==" not in out


@pytest.mark.parametrize("words, answer", [
    (["smaple"], "did you mean 'sample'"),
    (["sample", "CO", "--out", "x.npz", "--stepss", "3"], "unrecognized arguments"),
    (["sample", "C1C", "--scheme", "plain", "--out", "x.npz"], "cannot be read"),
    (["sample", "CO", "--scheme", "plain", "--out", "x.npz", "--config", "qm_fats"], "qm_fats does not exist"),
    (["sample", "CO", "--out", "x.npz"], "needs a network"),
    (["export", "none.npz", "x.xyz"], "none.npz does not exist"),
    (["baseline"], "say which molecule"),
    (["evaluate", "none.npz", "--rdf-bins", "1"], "1 is not a whole number from 2 to 1000"),
    (["sample", "O", "--scheme", "plain", "--config", "md", "--out", ""], "give the name of a file to write"),
    (["sample", "O", "--scheme", "plain", "--config", "md", "--out", ".."], "give the name of a file to write"),
    (["learn", "O", "--config", "md", "--out", "."], "give the name of a file to write"),
])
def test_a_mistake_is_one_sentence_and_exit_code_2(words, answer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err
    assert code == 2 and answer in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.npz"))


def test_configs_are_the_callers_own_and_else_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/qm.yaml", "qm.yaml", "qm"):
        assert find_config(name) == ROOT / "configs/qm.yaml"
    assert find_molecules("data/molecules.smi") == ROOT / "data/molecules.smi"
    (tmp_path / "qm.yaml").write_text("replicas: 7\n")
    assert read_yaml("qm.yaml") == {"replicas": 7} and read_yaml("configs/qm.yaml")["backend"] == "tblite"
    assert str(find_config("elsewhere/qm.yaml")) == "elsewhere/qm.yaml"  # a path that was meant, and is not there
    assert str(find_config("qm.yml")) == "qm.yml" and str(find_config(tmp_path / "none.yaml")).endswith("none.yaml")


def test_flags_of_a_command_are_grouped():
    shown = kstep("sample", "--help").stdout
    groups = ["molecule and true physics:", "network:", "scheme:", "run:", "of every command:"]
    assert [shown.index(group) for group in groups] == sorted(shown.index(group) for group in groups)


def test_a_flag_left_out_unsets_no_set(tmp_path):
    (tmp_path / "one.smi").write_text("O water\n")
    short = [word for key in ("equilibration_ps=0.005", "length_ps=0.01", "hot_length_ps=0", "replicas=3")
             for word in ("--set", key)]
    finished = kstep("baseline", "--smiles-file", "one.smi", "--raw", "raw", "--out", "out", *short, cwd=tmp_path)
    assert "3 replicas" in finished.stderr


def test_a_molecule_that_is_a_structure_file_is_read_and_a_damaged_one_is_told(tmp_path):
    (tmp_path / "my.xyz").write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    (tmp_path / "bad.xyz").write_text("1\nH 0 0 0\n")
    words = ("--scheme", "plain", "--steps", "1", "--replicas", "1", "--burn-in-steps", "0", "--num-workers", "1",
             "--out", tmp_path / "x.npz")
    finished = run_program("src/06b_hybrid_integrate_qm.py", "--molecule", tmp_path / "my.xyz", *words)
    assert finished.returncode == 0 and "my plain" in finished.stderr, finished.stderr[-1000:]
    finished = run_program("src/06b_hybrid_integrate_qm.py", "--molecule", tmp_path / "bad.xyz", *words)
    assert finished.returncode == 2 and "is not the number of the atoms" in finished.stderr
    assert "delete" not in finished.stderr and (tmp_path / "bad.xyz").exists()


def test_a_name_from_a_path_speaks_of_the_path(tmp_path):
    finished = run_program("src/06b_hybrid_integrate_qm.py", "--smiles", "CO", "--scheme", "plain", "--out",
                          tmp_path / "my run.npz")
    assert finished.returncode == 2
    assert "--out" in finished.stderr and "--name" in finished.stderr and "--smiles" not in finished.stderr


def test_the_wheel_brings_command_and_configs(tmp_path):
    """Built without network, put on the path of an empty folder, and run there."""
    for name in ("src", "configs", "data"):  # a copy: a build leaves files beside its sources
        shutil.copytree(ROOT / name, tmp_path / "source" / name,
                        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                            "--wheel-dir", tmp_path, tmp_path / "source"], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    wheel = next(tmp_path.glob("kstep-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
        assert "kstep = kstep.cli:main" in entry_points
        archive.extractall(tmp_path / "site")
    assert {f"kstep/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= names
    assert {"kstep/data/molecules.smi", "kstep/data/qm_molecules.smi", "kstep/py.typed"} <= names
    (tmp_path / "empty").mkdir()
    code = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import kstep; from kstep.cli import main\n"
            "assert 'site' in kstep.__file__; sys.exit(main())")
    words = ("sample", "CO", "--scheme", "plain", "--config", "qm_fast", "--steps", "2", "--burn-in-steps", "0",
             "--replicas", "1", "--num-workers", "1", "--device", "cpu", "--out", "e.npz")
    finished = run_python("-c", code, tmp_path / "site", *words, cwd=tmp_path / "empty")
    assert finished.returncode == 0, finished.stderr[-2000:]
    written = sorted(path.name for path in (tmp_path / "empty").iterdir())
    assert written == ["e.npz", "e.npz.log", "e.npz.starts"]
