"""The dipole that a true call finds: its unit and origin in every backend, and that it stays with its geometry."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest

from conftest import BatchPool, run_program
from kstep.forces import calculator_spec, load_qm_config, physics_spec
from kstep.front import load
from kstep.runs.loop import initial_state, macro_steps
from kstep.runs.network_dynamics import Carrier
from kstep.runs.recorder import read_restart, write_restart
from kstep.schemes import Checked, Impulse, Metropolis, Plain
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.state import State
from kstep.units import NM_PER_BOHR
from test_nested import nested
from test_sampler import MASSES, SpringNetwork, pairs, spring

STO_3G = {"backend": "pyscf", "functional": "HF", "basis": "STO-3G", "device": "cpu"}
XTB = {"backend": "xtb"}
NETWORK = SpringNetwork(spring(stiffness=1.4e4))


def physics_of(molecule, settings):
    if settings.get("backend") == "xtb":
        pytest.importorskip("xtb.interface")
    return physics_spec(molecule, load_qm_config(None, settings)).build()


@pytest.mark.parametrize("settings", [{}, XTB, STO_3G], ids=["tblite", "xtb", "pyscf"])
@pytest.mark.parametrize("charge, multiplicity", [(0, 1), (1, 2)])
def test_a_dipole_moves_with_the_molecule_and_not_with_where_it_is(water, settings, charge, multiplicity):
    """It points from O to the hydrogens, turns as the molecule does, and is about the centre of mass, ion or not."""
    physics = physics_of(water, {**settings, "charge": charge, "spin_multiplicity": multiplicity})
    x = water.conformers[0]
    physics.energy_and_forces(x)
    here = physics.extra()["dipole"]
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    physics.energy(x @ turn.T + 0.7)
    assert physics.extra()["dipole"] == pytest.approx(turn @ here, abs=1e-4)
    assert here @ (x[1] + x[2] - 2 * x[0]) > 0
    assert 0.03 < np.linalg.norm(here) < 0.07  # e nm; water has 0.0385 in experiment, 1.85 D


def test_the_dipole_is_the_slope_of_the_energy_in_a_field(water):
    """E(F) = E - mu F, in PySCF, whose one-electron Hamiltonian takes a field: unit, sign and origin at once."""
    from pyscf import gto, scf

    x = water.conformers[0]
    physics = physics_of(water, STO_3G)
    physics.energy(x)
    atoms = [("OHH"[i], x[i] / NM_PER_BOHR) for i in range(3)]
    molecule = gto.M(atom=atoms, unit="Bohr", basis="sto-3g", verbose=0)

    def energy(field):
        mean_field = scf.RHF(molecule)
        core = mean_field.get_hcore() + np.einsum("x,xij->ij", field, molecule.intor("int1e_r"))
        mean_field.get_hcore = lambda *_: core
        mean_field.conv_tol = 1e-12
        nuclei = sum(z * field @ r for z, r in zip(molecule.atom_charges(), molecule.atom_coords()))
        return mean_field.kernel() - nuclei

    slope = [(energy(-h) - energy(h)) / 2e-4 for h in 1e-4 * np.eye(3)]
    assert physics.extra()["dipole"] == pytest.approx(np.array(slope) * NM_PER_BOHR, abs=1e-5)


def test_the_table_of_tblite_is_read_at_the_right_place(water):
    """As tblite reads it itself, whole, and without a leak of memory."""
    from kstep.forces.tblite import dipole_about_origin

    physics = physics_spec(water, load_qm_config(None, {}), warm_start=True).build()
    physics.energy(water.conformers[0] + 0.1)
    result = physics._last[0]
    assert np.array_equal(dipole_about_origin(result), result.get("dipole"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20_000):
        dipole_about_origin(result)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000  # kB; 100 bytes each would be there


def test_an_ase_calculators_dipole_is_that_of_its_program(water):
    from tblite.ase import TBLite

    physics = calculator_spec(TBLite, water, method="GFN2-xTB").build()
    physics.energy_and_forces(water.conformers[0])
    own = physics_of(water, {"accuracy": 1.0})
    own.energy(water.conformers[0])
    assert physics.extra()["dipole"] == pytest.approx(own.extra()["dipole"], abs=1e-5)
    ion = calculator_spec(TBLite, water, method="GFN2-xTB", charge=1, multiplicity=2).build()
    ion.energy_and_forces(water.conformers[0])
    assert ion.extra() == {}  # about which point?


def test_an_ase_calculator_without_a_dipole_has_none(water):
    physics = calculator_spec("ase.calculators.lj:LennardJones", water, kwargs={"sigma": 0.6}).build()
    physics.energy_and_forces(water.conformers[0])
    assert physics.extra() == {}


class PolarPool(BatchPool):
    """A potential that says a dipole, a function of the geometry; nothing of what fails."""

    def evaluate(self, positions, rows=None):
        truth = super().evaluate(positions, rows)
        return replace(truth, extra={"dipole": dipole_of(positions)})


def dipole_of(positions):
    return 0.3 * positions[:, 1] ** 2 - 0.1 * positions[:, 0]


def schemes():
    return {"plain": Plain(MASSES, 5e-4), "impulse": Impulse(NETWORK, Carrier(NETWORK), MASSES, 5e-4, 4),
            "checked": Checked(NETWORK, Carrier(NETWORK), MASSES, 5e-4, 4),
            "metropolis": Metropolis(Carrier(NETWORK), MASSES, 1e-3, 8, 300.0,
                                     ladder=TemperatureLadder((300.0, 500.0))),
            "nested": nested(NETWORK)}


@pytest.mark.parametrize("name", list(schemes()))
def test_the_dipole_of_a_state_is_that_of_its_positions(name, tmp_path):
    """Where proposals go back and rungs are swapped too; and it is in the restart file."""
    rng, pool = np.random.default_rng(0), PolarPool(spring())
    x = pairs(8, rng)
    state, accepted = initial_state(pool, x, rng.standard_normal(x.shape) * 0.5), []
    for state, info in macro_steps(schemes()[name], pool, state, rng, 12, n_parts=2):
        assert np.allclose(state.dipole, dipole_of(state.positions))
        accepted.append(info.accepted)
    if name in ("metropolis", "nested"):
        assert 0.1 < np.mean(accepted) < 0.99
    write_restart(tmp_path / "restart.npz", state, rng, {}, {})
    assert np.array_equal(read_restart(tmp_path / "restart.npz", {})[0].dipole, state.dipole)


def test_a_potential_without_dipoles_leaves_them_empty():
    pool, rng = BatchPool(spring()), np.random.default_rng(0)
    state: State = initial_state(pool, pairs(4, rng), np.zeros((4, 2, 3)))
    *_, (state, _) = macro_steps(schemes()["plain"], pool, state, rng, 3)
    assert state.dipole.shape == (0, 3)


def test_runs_record_the_dipole_of_each_frame_and_show_its_spectrum(tmp_path):
    """A plain run through workers, cut in two parts, then its spectrum from the command line and from Python."""
    command = ("-m", "kstep", "sample", "O", "--scheme", "plain", "--thermostat", "none", "--burn-in-steps", 0,
               "--replicas", 2, "--num-workers", 2, "--dt-fs", 0.5, "--set", "checkpoint_interval=500", "--out",
               tmp_path / "water.npz")
    for steps in (600, 1700):
        done = run_program(*command, "--steps", steps, "--resume")
        assert done.returncode == 0, done.stderr
    result = load(tmp_path / "water.npz")
    t = result.trajectory
    assert t.dipole.shape == (len(t.pos), 3)
    physics = physics_of(result_molecule(t), {})
    for frame in (0, 1500, len(t.pos) - 1):
        physics.energy(t.pos[frame])
        assert t.dipole[frame] == pytest.approx(physics.extra()["dipole"], abs=1e-5)

    files = [tmp_path / f"water{ending}" for ending in (".json", ".csv", ".png")]
    done = run_program("-m", "kstep", "spectrum", tmp_path / "water.npz", "--baseline", tmp_path / "water.npz",
                      "--out", *files, "--window-ps", 0.8)
    assert done.returncode == 0, done.stderr
    assert "infrared spectrum" in done.stdout and "shift / cm-1" in done.stdout
    written, spectrum = json.loads(files[0].read_text()), result.spectrum(window_ps=0.8)
    assert written["peaks"][-1]["position_cm"] == pytest.approx(spectrum.peaks[-1].position_cm)
    assert written["absorption"] == pytest.approx(spectrum.absorption) and written["unit"] == "km/mol"
    assert len(files[1].read_text().splitlines()) == 1 + len(spectrum.wavenumber_cm)
    assert files[2].read_bytes()[:4] == b"\x89PNG"
    highest = max(peak.position_cm for peak in spectrum.peaks)
    assert 3400 < highest < 3900  # O-H


def result_molecule(trajectory):
    from conftest import molecule_from_smiles

    molecule = molecule_from_smiles("O", "water", 1)
    assert np.array_equal(molecule.numbers, trajectory.atom_types)
    return molecule


@pytest.mark.parametrize("flags, words", [
    (("nowhere.npz",), "nowhere.npz does not exist"),
    (("nowhere.npz", "--out", "a.pdf"), "a spectrum is written as .json, .csv, .png, not as '.pdf'"),
    (("nowhere.npz", "--window-ps", "-1"), "is not a number > 0"),
])
def test_a_spectrum_of_what_has_none_is_one_sentence(flags, words, capsys, monkeypatch, tmp_path):
    from kstep.cli import main

    monkeypatch.chdir(tmp_path)
    try:
        code = main(["spectrum", *flags])
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2 and words in capsys.readouterr().err
