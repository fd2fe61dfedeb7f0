"""`kstep check` says what works, what is missing and how to get it."""

import logging
import sys

import pytest

from kstep.forces import BACKENDS, self_check
from kstep.forces.self_check import Condition, Part, check_backend, check_installation, check_machine, core_works


def test_an_installation_that_runs_the_tests_works():
    rows = check_installation()
    by_name = {(row.part, row.name): row for row in rows}
    assert core_works(rows)
    for name in BACKENDS:
        row = by_name[Part.BACKEND, name]
        assert row.state is Condition.WORKS or not row.is_core, row
    assert by_name[Part.PACKAGE, "numpy"].version and by_name[Part.PACKAGE, "torch"].is_core
    assert by_name[Part.MACHINE, "python"].version == sys.version.split()[0]
    missing = [row for row in rows if row.state is not Condition.WORKS]
    assert all(row.remedy for row in missing)
    assert {row.name for row in missing} & set(BACKENDS) <= {"aimnet2"}  # of an extra
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("module, backend", [
    ("tblite.interface", "tblite"), ("openmm", "openmm"), ("pyscf", "pyscf"), ("ase.calculators.lj", "ase")])
def test_a_broken_import_is_a_row_and_the_others_go_on(module, backend, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    row = check_backend(backend)
    assert row.state is Condition.BROKEN and row.is_core and module in row.found and "pip install" in row.remedy
    assert check_backend("xtb").state is Condition.WORKS or backend == "xtb"
    assert not core_works([row])


def test_what_was_never_installed_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.interface", None)
    monkeypatch.setattr(self_check, "_version", lambda package: "")
    assert check_backend("tblite").state is Condition.MISSING


def test_a_library_that_raises_its_own_error_is_broken(monkeypatch, tmp_path):
    (tmp_path / "gpu_of_nobody.py").write_text("raise RuntimeError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    row = self_check.check_package("gpu-of-nobody", "buy one")
    assert (row.state, row.found, row.remedy) == (Condition.BROKEN, "RuntimeError: no driver", "buy one")
    assert self_check.check_package("not-there-at-all", "x").state is Condition.MISSING


def test_a_wrong_energy_is_no_working_backend(monkeypatch):
    from kstep.forces.tblite import TblitePhysics

    right = TblitePhysics._compute
    monkeypatch.setattr(TblitePhysics, "_compute", lambda *args: (right(*args)[0] + 0.1, right(*args)[1]))
    row = check_backend("tblite")
    assert row.state is Condition.BROKEN and "is -13312.1541 kJ/mol and should be -13312.2541" in row.found


def test_without_torch_the_machine_is_still_described(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [row.name for row in check_machine()] == ["python", "cores"]
