"""Implicit solvents: numbers of others, names that do not mix, and what is refused before any call."""

import itertools

import numpy as np
import pytest

from conftest import molecule_from_smiles, run_program
from kstep.errors import UserError
from kstep.forces import PhysicsSpec, find_backend, load_qm_config, physics_spec, qmmm_spec
from kstep.forces.solvents import ALPB, OTHER_NAMES, XTB_SOLVENTS, spelled
from kstep.forces.tblite import QMConfig, TblitePhysics
from kstep.schemas import load_trajectory
from kstep.units import KJ_PER_HARTREE, NM_PER_BOHR

# the water of the xtb documentation's chapter "Implicit Solvation", and of xtb-python's docstrings
WATER = np.array([[0, 0, -0.73578586109551], [1.44183152868459, 0, 0.36789293054775],
                  [-1.44183152868459, 0, 0.36789293054775]]) * NM_PER_BOHR
NUMBERS, MASSES = np.array([8, 1, 1]), np.array([15.999, 1.008, 1.008])


def water_in(backend, **settings):
    if backend == "xtb":
        pytest.importorskip("xtb.interface")
    return find_backend(backend).physics(NUMBERS, MASSES, **settings)


@pytest.mark.parametrize("backend", ["tblite", "xtb"])
def test_water_in_water_has_the_energy_of_the_xtb_documentation(backend):
    """Total energy -5.080052453799 Eh with Gsolv -0.011759733450 Eh, GFN2-xTB and GBSA."""
    physics = water_in(backend, solvent="water", solvation_model="gbsa", accuracy=0.01)
    assert physics.energy(WATER) / KJ_PER_HARTREE == pytest.approx(-5.080052453799, abs=2e-8)


@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
def test_two_programs_have_one_gbsa(method):
    for solvent in XTB_SOLVENTS["gbsa", method]:
        energy = [water_in(backend, method=method, solvent=solvent, solvation_model="gbsa").energy(WATER)
                  for backend in ("tblite", "xtb")]
        assert energy[0] == pytest.approx(energy[1], abs=0.02), solvent  # GBSA's grids differ a little


def test_every_listed_solvent_has_parameters_and_every_name_is_one_of_them():
    """A name that the program does not know would raise; one taken for the gas phase would stay at its energy."""
    for (model, method), listed in XTB_SOLVENTS.items():
        gas = water_in("tblite", method=method).energy(WATER)
        for solvent in listed:
            energy = water_in("tblite", method=method, solvent=solvent, solvation_model=model).energy(WATER)
            assert abs(energy - gas) > 0.01, (method, model, solvent)
    assert set(OTHER_NAMES.values()) <= set(ALPB)


def test_alpb_is_not_gbsa_and_the_default_of_tblite():
    alpb, gbsa = (water_in("tblite", solvent="water", solvation_model=m).energy(WATER) for m in ("alpb", "gbsa"))
    assert abs(alpb - gbsa) > 5.0
    assert water_in("tblite", solvent="water").energy(WATER) == alpb


def test_pyscf_knows_each_of_its_solvents_by_one_name():
    from pyscf.solvent.smd import solvent_db

    from kstep.forces.pyscf import solvents

    assert len(solvents()) == len(solvent_db) - 1  # the empty name is the gas phase
    assert set(ALPB) - set(solvents()) <= {"furan", "phenol", "wet-octanol"}  # which that database lacks


def test_pyscf_solvates_more_in_water_than_in_toluene():
    """PCM of a polar molecule: the energy falls as the dielectric constant grows, by half of the Born limit at 2.4."""
    settings = {"functional": "HF", "basis": "STO-3G", "device": "cpu"}
    gas, toluene, water = (water_in("pyscf", **settings, **({"solvent": s, "solvation_model": "cpcm"} if s else {})
                                    ).energy(WATER) for s in (None, "toluene", "water"))
    assert water < toluene < gas
    factor = (2.3741 - 1) / 2.3741 / ((78.355 - 1) / 78.355)
    assert (toluene - gas) / (water - gas) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("settings, method", [
    ({}, "GFN2-xTB"),
    ({"solvent": "none"}, "GFN2-xTB"),
    ({"solvent": "H2O"}, "GFN2-xTB/ALPB(water)"),
    ({"solvent": "Water", "solvation_model": "gbsa"}, "GFN2-xTB/GBSA(water)"),
    ({"solvent": "CHCl3", "backend": "xtb", "method": "GFN1-xTB"}, "GFN1-xTB/GBSA(chloroform)"),
    ({"solvent": "THF", "backend": "pyscf"}, "PBE/def2-SVP/SMD(thf)"),
    ({"solvent": "acetic acid", "backend": "pyscf", "solvation_model": "iefpcm"}, "PBE/def2-SVP/IEFPCM(aceticacid)"),
    ({"backend": "pyscf"}, "PBE/def2-SVP"),
])
def test_the_solvent_is_part_of_the_method(water, settings, method):
    assert physics_spec(water, load_qm_config(None, settings)).method == method


@pytest.mark.parametrize("settings, words", [
    ({"solvent": "watr"}, "unknown solvent 'watr'; did you mean 'water'"),
    ({"solvent": "ethanol", "solvation_model": "gbsa"},
     "GBSA has no parameters of GFN2-xTB for ethanol; it has acetone"),
    ({"solvent": "dmf", "solvation_model": "gbsa", "method": "GFN1-xTB"}, "GBSA has no parameters of GFN1-xTB for dmf"),
    ({"solvent": "water", "method": "IPEA1-xTB"}, "IPEA1-xTB has no parameters for an implicit solvent"),
    ({"solvent": "water", "method": "GFN-FF", "backend": "xtb"}, "GFN-FF has no parameters for an implicit solvent"),
    ({"solvent": "water", "solvation_model": "alpb", "backend": "xtb"}, "backend xtb has no ALPB"),
    ({"solvation_model": "alpb"}, "means nothing without a solvent"),
    ({"solvent": "watr", "backend": "pyscf"}, "PySCF knows no solvent 'watr'; did you mean 'water'"),
    ({"solvent": "water", "backend": "pyscf", "solvation_model": "alpb"}, "should be 'smd', 'cpcm' or 'iefpcm'"),
    ({"solvent": 5}, "solvent = 5 is not valid"),
    ({"solvent": "water", "backend": "ase", "calculator": "x:Y"}, "'solvent' means nothing to backend ase"),
])
def test_what_has_no_parameters_is_refused_before_any_call(water, settings, words):
    if settings.get("backend") == "xtb":
        pytest.importorskip("xtb.interface")
    with pytest.raises(UserError, match=words):
        physics_spec(water, load_qm_config(None, settings)).build()


def test_a_qm_region_takes_no_continuum_besides_its_surroundings(water):
    from kstep.molecules.droplet import solvate
    from kstep.molecules.prepare import prepare_molecule

    with pytest.raises(UserError, match="has its solvent around it, atom by atom"):
        qmmm_spec(solvate(prepare_molecule("water", "O", n_conformers=1), 1), [0, 1, 2], QMConfig(solvent="water"))


def test_a_gpu_without_the_solvent_says_so(monkeypatch):
    from kstep.forces import pyscf

    monkeypatch.setattr("pyscf.solvent._attach_solvent.SCFWithSolvent.to_gpu",
                        lambda self: (_ for _ in ()).throw(ImportError("no module named gpu4pyscf.solvent")))
    with pytest.raises(UserError, match="set device: cpu, or solvent: none"):
        pyscf.PyscfPhysics(NUMBERS, MASSES, functional="HF", basis="STO-3G", device="gpu", solvent="water")


def test_a_network_of_the_gas_phase_is_refused_in_water():
    from kstep.models import checkpoint

    of_gas = {"heads": None, "elements": [1, 8], "molecule": None, "method": "GFN2-xTB", "config": {}}
    wanted = physics_spec(molecule_from_smiles("O", "water", 1), QMConfig(solvent="water")).method
    with pytest.raises(UserError, match=r"was trained on GFN2-xTB, this run uses GFN2-xTB/ALPB\(water\)"):
        checkpoint.check_fits(of_gas, "network.pt", NUMBERS, np.array([[0, 1], [0, 2]]), method=wanted)


def test_the_flag_reaches_every_stage_that_samples(tmp_path):
    """Plain MD and a hybrid, from the command line: the method of both is in water, and so are the energies."""
    done = run_program("-m", "kstep", "baseline", "O", "--name", "water", "--config", "qm_fast", "--solvent", "h2o",
                      "--out", tmp_path, "--set", "length_ps=0.01", "--set", "equilibration_ps=0.002", "--set",
                      "hot_length_ps=0", "--replicas", 1)
    assert done.returncode == 0, done.stderr
    plain = load_trajectory(tmp_path / "water/trajectory.npz")
    assert plain.metadata["method"] == "GFN2-xTB/ALPB(water)"
    physics = TblitePhysics(plain.atom_types, plain.masses, solvent="water")
    assert plain.Epot[-1] == pytest.approx(physics.energy(plain.pos[-1]), abs=1e-3)
    assert plain.dipole[-1] == pytest.approx(physics.extra()["dipole"], abs=1e-5)
    done = run_program("-m", "kstep", "sample", "O", "--scheme", "plain", "--solvent", "water", "--solvation-model",
                      "gbsa", "--steps", 5, "--burn-in-steps", 0, "--replicas", 1, "--out", tmp_path / "run.npz")
    assert done.returncode == 0, done.stderr
    assert load_trajectory(tmp_path / "run.npz").metadata["method"] == "GFN2-xTB/GBSA(water)"
    again = run_program("-m", "kstep", "sample", "O", "--scheme", "plain", "--solvent", "none", "--steps", 5,
                       "--burn-in-steps", 0, "--replicas", 1, "--out", tmp_path / "run.npz", "--resume")
    assert again.returncode == 2 and "method" in again.stderr


@pytest.mark.parametrize("flags, words", [
    (("sample", "O", "--config", "md", "--out", "x.npz"), "a force field has no implicit solvent"),
    (("advise", "data/raw/water", "--md-config", "md"), "a force field has no implicit solvent"),
    (("baseline", "O", "--config", "qm_ase"), "means nothing to backend ase"),
    (("baseline", "O", "--config", "qm", "--solvation-model", "smd"), "should be 'alpb' or 'gbsa'"),
])
def test_solvent_on_what_has_none_is_one_sentence(flags, words, capsys, monkeypatch, tmp_path):
    from kstep.cli import main

    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--solvent", "water"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1] and not list(itertools.chain(tmp_path.iterdir()))


def test_what_judges_or_proposes_beside_the_truth_is_in_its_solvent(monkeypatch, tmp_path):
    """AIMNet2 has no implicit solvent, and stays in the gas phase."""
    from kstep import front
    from kstep.cli import main
    from kstep.stages import sampling

    asked = []

    def stop(settings):
        asked.append(settings)
        raise UserError("enough")

    monkeypatch.setattr(sampling, "sample", stop)
    monkeypatch.setattr(front, "run_sampling", stop)
    beside = {"delay_with": "configs/qm.yaml", "propose_with": "configs/qm_aimnet2.yaml"}
    flags = [word for key, config in beside.items() for word in (f"--{key.replace('_', '-')}", config)]
    assert main(["sample", "O", "--config", "configs/qm_pyscf.yaml", "--solvent", "H2O", *flags, "--out",
                 str(tmp_path / "run.npz")]) == 2
    with pytest.raises(UserError, match="enough"):
        front.sample("O", "configs/qm_pyscf.yaml", solvent="H2O", out=tmp_path / "run.npz", workers=1, **beside)
    assert len(asked) == 2
    for settings in asked:
        assert settings.physics.config.solvent == settings.delay_with.config.solvent == "water"
        assert "aimnet2" in settings.propose_with.method.lower()


def test_names_are_spelled_in_one_way():
    assert [spelled(n) for n in ("H2O", " Carbon Disulfide", "GAS", None, "wOctanol")] == [
        "water", "carbondisulfide", None, None, "wet-octanol"]


def test_a_spec_travels_with_its_solvent(water):
    spec = physics_spec(water, QMConfig(solvent="methanol"))
    assert isinstance(spec, PhysicsSpec) and spec.settings["solvent"] == "methanol"
    assert spec.build().energy(water.conformers[0]) != physics_spec(water, QMConfig()).build().energy(
        water.conformers[0])
