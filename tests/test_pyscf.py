"""Hartree-Fock and DFT through PySCF: what is computed, what is refused, what happens when an SCF fails."""

import logging
import sys
import types

import numpy as np
import pytest

from conftest import ForceNetwork, molecule_from_smiles, run_program, start_state
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec, load_qm_config, physics_spec, pyscf as backend
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.pyscf import PyscfConfig
from kstep.runs.loop import macro_steps
from kstep.runs.network_dynamics import Carrier
from kstep.runs.settings import HybridRun
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.metropolis import Metropolis
from kstep.schemes.plain import Plain
from kstep.units import KJ_PER_HARTREE

TINY = dict(functional="HF", basis="STO-3G", device="cpu")


def physics_of(molecule, *, warm_start=False, **settings):
    return physics_spec(molecule, PyscfConfig(**{**TINY, **settings}), warm_start=warm_start).build()


@pytest.mark.parametrize("settings", [
    {"functional": "PBE"},
    {"functional": "B3LYP", "density_fit": True},
    {"functional": "r2SCAN"},
    {"functional": "PBE", "charge": 1, "spin_multiplicity": 2},
    {"functional": "PBE", "charge": 1, "spin_multiplicity": 2, "unrestricted": False},
    {"functional": "HF", "charge": 1, "spin_multiplicity": 2, "density_fit": True},
    {"functional": "PBE", "basis": "def2-SVP", "density_fit": True},
], ids=str)
def test_forces_are_the_derivative_of_the_energy_even_on_a_coarse_grid(water, settings):
    """Dynamics at constant energy lives on it; without grid response they are hundreds of kJ/mol/nm off here."""
    physics = physics_of(water, grid_level=0, conv_tol=1e-11, **settings)
    x = water.conformers[0]
    forces = physics.energy_and_forces(x)[1]
    d = np.zeros_like(x)
    d[1, 1] = 1e-4
    slope = (physics.energy(x + d) - physics.energy(x - d)) / 2e-4
    assert -slope == pytest.approx(forces[1, 1], abs=0.05)
    assert np.abs(forces.sum(axis=0)).max() < 1e-3


def test_unrestricted_is_chosen_by_the_multiplicity_unless_said(water):
    def kind(multiplicity, charge, unrestricted):
        mol = backend.build_molecule(water.numbers, water.conformers[0] * 18.9, "STO-3G", charge, multiplicity)
        return type(backend.mean_field(mol, backend.ScfSettings(functional="HF", unrestricted=unrestricted))).__name__

    assert (kind(1, 0, None), kind(2, 1, None)) == ("RHF", "UHF")
    assert (kind(1, 0, True), kind(2, 1, False)) == ("UHF", "ROHF")


def test_settings_reach_the_electrons(water):
    mol = backend.build_molecule(water.numbers, water.conformers[0] * 18.9, "def2-SVP", 0, 1)
    field = backend.mean_field(mol, backend.ScfSettings(functional="B3LYP", density_fit=True, grid_level=1,
                                                        conv_tol=1e-7, max_iterations=17, dispersion="d3bj"))
    assert (field.xc, field.grids.level, field.conv_tol, field.max_cycle, field.disp) == ("B3LYP", 1, 1e-7, 17, "d3bj")
    assert field.nlcgrids.level == 1  # of a nonlocal correlation, which takes longest
    assert hasattr(field, "with_df") and mol.nao == 24


def test_a_heavy_element_takes_the_core_potential_of_its_basis():
    mol = backend.build_molecule(np.array([53, 1]), np.array([[0, 0, 0], [0, 0, 3.0]]), "def2-SVP", 0, 1)
    assert mol.nelectron == 53 + 1 - 28


def test_a_light_element_takes_one_too_where_the_basis_is_made_for_it():
    """All electrons of Cl in the valence functions of LANL2DZ would be 90 Ha too low."""
    def electrons(basis):
        return backend.build_molecule(np.array([17, 1]), np.array([[0, 0, 0], [0, 0, 2.4]]), basis, 0, 1).nelectron

    assert (electrons("LANL2DZ"), electrons("def2-SVP"), electrons("STO-3G")) == (8, 18, 18)


def test_a_warm_start_begins_at_the_last_density_of_its_slot_and_changes_no_digit_that_counts(water, monkeypatch):
    guesses = []
    kept = backend.converge
    monkeypatch.setattr(backend, "converge", lambda field, guess: guesses.append(guess) or kept(field, guess))
    warm, cold = physics_of(water, warm_start=True), physics_of(water)
    x = water.conformers[0]
    for slot in (0, 1, 0):
        y = x + np.random.default_rng(slot).normal(size=x.shape) * 0.002
        assert warm.energy(y, slot) == pytest.approx(cold.energy(y, slot), abs=1e-4)
    assert [guess is not None for guess in guesses[::2]] == [False, False, True]
    assert not any(guess is not None for guess in guesses[1::2])
    warm.forget()
    warm.energy(x)
    assert guesses[-1] is None


def test_an_scf_that_fails_is_tried_in_second_order_and_counted(water):
    physics = physics_of(water, max_iterations=4)
    assert physics.energy(water.conformers[0]) == pytest.approx(physics_of(water).energy(water.conformers[0]), abs=1e-4)
    assert physics.second_tries == 1


def test_an_scf_that_fails_twice_is_never_a_number(water):
    physics = physics_of(water, max_iterations=1, warm_start=True)
    with pytest.raises(PhysicsError, match="did not converge in 1 cycles, nor by second-order"):
        physics.energy(water.conformers[0])
    assert physics.true_calls == 1 and not physics._last


@pytest.mark.parametrize("settings, words", [
    ({"functional": "PBEE"}, "knows no functional 'PBEE'; did you mean 'PBE'"),
    ({"functional": "wB97X-D"}, "cannot compute functional wB97X-D"),
    ({"functional": ","}, "is empty"),
    ({"basis": "def2-SPV"}, "knows no basis 'def2-SPV'; did you mean 'def2svp'"),
    ({"basis": "gth-szv"}, "no functions for the core of O, and brings no core potential"),
    ({"basis": "ccecp-ccpvdz"}, "no functions for the core of O, and brings no core potential"),
    ({"charge": 1}, "cannot have spin multiplicity 1; use an even one"),
    ({"charge": 10}, "no electrons"),
])
def test_nonsense_is_refused_before_it_computes(water, settings, words):
    with pytest.raises(UserError, match=words):
        physics_of(water, **settings)


def test_an_element_without_functions_is_named():
    with pytest.raises(UserError, match="basis def2-SVP has no functions for U"):
        PhysicsSpec("pyscf", np.array([92, 1]), np.ones(2), dict(multiplicity=2)).build()


@pytest.mark.parametrize("settings", [{"dispersion": "d3bj"}, {"functional": "PBE-D3BJ"}])
def test_dispersion_that_is_not_installed_is_refused(water, settings, monkeypatch):
    from pyscf.scf import dispersion

    monkeypatch.setattr(dispersion, "dispersion", None)
    with pytest.raises(UserError, match="needs the package pyscf-dispersion"):
        physics_of(water, **settings)


def test_dispersion_is_added_where_it_is_installed(water):
    pytest.importorskip("pyscf.dispersion")
    x = water.conformers[0]
    assert 0.1 < abs(physics_of(water, dispersion="d3bj").energy(x) - physics_of(water).energy(x)) < 50
    with pytest.raises(UserError, match="no dispersion correction of this kind"):
        physics_of(water, functional="0.5*HF+0.5*PBE,PBE", dispersion="d3bj")


def test_without_a_gpu_one_line_says_that_the_cpu_computes(water, caplog):
    backend.pick_device.cache_clear()
    with caplog.at_level(logging.INFO, "kstep"):
        for _ in range(3):
            assert physics_spec(water, PyscfConfig(), warm_start=True).settings["device"] == "cpu"
    assert [r.message for r in caplog.records] == ["no CUDA GPU with GPU4PySCF found; PySCF runs on the CPU"]


class FakeCuda(types.SimpleNamespace):
    """CuPy of a machine with a GPU, or with a broken driver."""


@pytest.mark.parametrize("available, device", [(lambda: True, "gpu"), (lambda: False, "cpu"), (lambda: 1 / 0, "cpu")])
def test_a_gpu_is_taken_where_it_works(water, monkeypatch, available, device):
    monkeypatch.setitem(sys.modules, "cupy", FakeCuda(cuda=FakeCuda(is_available=available)))
    monkeypatch.setitem(sys.modules, "gpu4pyscf", FakeCuda())
    backend.gpu_found.cache_clear(), backend.pick_device.cache_clear()
    assert physics_spec(water, PyscfConfig(), warm_start=True).settings["device"] == device
    backend.gpu_found.cache_clear(), backend.pick_device.cache_clear()


def test_on_a_gpu_the_field_moves_there_and_its_arrays_come_back(water, monkeypatch):
    class OnGpu:
        """A converged field whose gradient is an array of the GPU."""

        converged, e_tot = True, -75.0

        def kernel(self, dm0=None):
            pass

        def nuc_grad_method(self):
            return types.SimpleNamespace(kernel=lambda: types.SimpleNamespace(get=lambda: np.ones((3, 3))))

        def dip_moment(self, **how):
            return types.SimpleNamespace(get=lambda: np.zeros(3))

    monkeypatch.setattr("pyscf.scf.hf.RHF.to_gpu", lambda field: OnGpu())
    physics = PhysicsSpec("pyscf", water.numbers, water.masses,
                          dict(functional="HF", basis="STO-3G", device="gpu")).build()
    energy, forces = physics.energy_and_forces(water.conformers[0])
    assert energy == pytest.approx(-75.0 * KJ_PER_HARTREE) and forces.shape == (3, 3) and (forces < 0).all()


def test_the_method_names_all_that_makes_the_surface():
    names = {PyscfConfig(**settings).method for settings in (
        {}, {"basis": "def2-TZVP"}, {"functional": "B3LYP"}, {"dispersion": "d3bj"}, {"density_fit": True},
        {"unrestricted": True})}
    assert len(names) == 6 and "PBE/def2-SVP" in names and "PBE-D3BJ/def2-SVP" in names and "DF-PBE/def2-SVP" in names
    assert PyscfConfig(functional="pbe", basis="DEF2-svp").method == PyscfConfig().method


@pytest.mark.parametrize("text, words", [
    ("backend: pyscf\nmethod: PBE\n", "backend pyscf has no key 'method'; write functional and basis"),
    ("backend: pyscf\naccuracy: 0.1\n", "key 'accuracy' means nothing to backend pyscf"),
    ("backend: tblite\nbasis: def2-SVP\n", "key 'basis' means nothing to backend tblite"),
    ("basis: def2-SVP\n", "key 'basis' means nothing to backend tblite"),
    ("backend: ase\ncalculator: a.b:C\nbasis: def2-SVP\n", "key 'basis' means nothing to backend ase"),
    ("backend: ase\n", "calculator"),
    ("backend: pyscff\n", "did you mean 'pyscf'"),
    ("backend: [1]\n", "unknown backend"),
    ("backend: pyscf\nfunctionl: PBE\n", "did you mean 'functional'"),
    ("backend: pyscf\ngrid_level: 12\n", "grid_level = 12 is not valid"),
    ("backend: pyscf\nconv_tol: 1.0e-300\n", "conv_tol = 1e-300 is not valid"),
    ("electronic_temperature_K: 1.0e+9\n", "electronic_temperature_K = 1000000000.0 is not valid"),
    ("backend: pyscf\ndispersion: d5\n", "dispersion = 'd5' is not valid"),
    ("backend: pyscf\nbasis: ''\n", "basis = '' is not valid"),
])
def test_a_key_that_means_nothing_is_refused(tmp_path, text, words):
    (tmp_path / "qm.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_qm_config(tmp_path / "qm.yaml")


def test_hydrogen_dissociates_into_a_number_or_an_error_never_a_guess():
    molecule = molecule_from_smiles("[H][H]", "hydrogen", 1)
    physics = physics_of(molecule, functional="PBE", grid_level=1)
    for apart_nm in (0.06, 0.2, 0.6):
        assert np.isfinite(physics.energy(np.array([[0, 0, 0], [0, 0, apart_nm]])))


def water_at_hand(molecule, max_iterations):
    """A pool whose SCF may take max_iterations cycles, and the state of two replicas at a true energy."""
    good, poor = (physics_spec(molecule, PyscfConfig(**TINY, max_iterations=n), warm_start=True)
                  for n in (100, max_iterations))
    pool = EvaluationPool(poor, 1)
    return pool, start_state(EvaluationPool(good, 1), np.repeat(molecule.conformers[:1], 2, axis=0))


def test_metropolis_rejects_a_proposal_whose_scf_fails(water):
    pool, state = water_at_hand(water, 1)
    shake = ForceNetwork(lambda x: np.zeros_like(x))
    scheme = Metropolis(Carrier(shake), water.masses, 5e-4, 4, 300.0)
    *_, (last, info) = macro_steps(scheme, pool, state, np.random.default_rng(0), 1)
    assert not info.accepted.any() and info.failures.tolist() == [1, 1]
    assert np.array_equal(last.positions, state.positions) and np.array_equal(last.energy, state.energy)
    assert len(pool.failures) == 2 and "did not converge" in pool.failures[0]


def test_metropolis_does_without_forces_where_nobody_keeps_them(water, monkeypatch):
    pool, state = water_at_hand(water, 100)
    ends = []
    for needs_forces in (True, False):
        if not needs_forces:
            monkeypatch.setattr(backend, "gradient", lambda *_: pytest.fail("a gradient was computed"))
        still = ForceNetwork(lambda x: np.zeros_like(x))
        scheme = Metropolis(Carrier(still), water.masses, 1e-4, 4, 300.0, needs_forces=needs_forces)
        *_, (last, info) = macro_steps(scheme, pool, state, np.random.default_rng(0), 3)
        ends.append(last)
    assert info.accepted.any() and np.array_equal(ends[0].positions, ends[1].positions)
    assert np.isfinite(ends[0].forces).all() and np.isnan(ends[1].forces[info.accepted]).all()
    with pytest.raises(pytest.fail.Exception, match="a gradient was computed"):  # who observes wants to learn from it
        list(macro_steps(scheme, pool, state, np.random.default_rng(0), 1, observe=lambda *_: None))


@pytest.mark.parametrize("scheme, backend, wanted, kept", [
    ("metropolis", "pyscf", None, False), ("metropolis", "tblite", None, True), ("metropolis", "pyscf", True, True),
    ("metropolis", "tblite", False, False), ("impulse", "pyscf", None, True)])
def test_forces_are_kept_unless_they_cost_extra(water, scheme, backend, wanted, kept):
    spec = PhysicsSpec(backend, water.numbers, water.masses)
    run = HybridRun(water, spec, "any", HybridConfig(scheme=scheme, store_forces=wanted), None, None)
    assert run.keeps_forces is kept


def test_plain_dynamics_stops_with_a_sentence_where_the_scf_fails_twice_and_goes_on_where_once(water):
    pool, state = water_at_hand(water, 1)
    with pytest.raises(PhysicsError, match="plain dynamics of replica 0 broke at step .* did not converge"):
        list(macro_steps(Plain(water.masses, 5e-4), pool, state, np.random.default_rng(0), 1))
    pool, state = water_at_hand(water, 4)
    *_, (last, _) = macro_steps(Plain(water.masses, 5e-4), pool, state, np.random.default_rng(0), 2)
    assert last.step == 2 and not pool.failures


def test_01c_runs_dft_as_01b_runs_xtb(tmp_path):
    (tmp_path / "one.smi").write_text("O water\n")
    base = ("src/01c_run_pyscf_baselines.py", "--smiles-file", tmp_path / "one.smi", "--config",
            "configs/qm_pyscf_fast.yaml", "--raw", tmp_path / "raw", "--out", tmp_path / "qm", "--num-workers", 1)
    done = run_program(*base, "--replicas", 1, "--set", "length_ps=0.005")
    assert done.returncode == 0, done.stderr
    trajectory = load_trajectory(tmp_path / "qm/water/trajectory.npz")
    assert trajectory.metadata["method"] == "HF/STO-3G" and trajectory.metadata["backend"] == "pyscf"
    assert trajectory.metadata["charge"] == 0 and np.isfinite(trajectory.Epot).all()
    same = ("--replicas", 1, "--set", "length_ps=0.005", "--resume")
    assert "is there already" in run_program(*base, *same).stderr
    for flags, words, code in (
            ((*same, "--set", "basis=6-31G"), "config.basis was STO-3G and is 6-31G", 2),
            (("--overwrite", "--set", "max_iterations=1"), "the SCF did not converge in 1 cycles", 2),
            (("--set", "functional=PBEE"), "did you mean 'PBE'?", 2),
            (("--set", "accuracy=1"), "key 'accuracy' means nothing to backend pyscf", 2),
            (("--config", "configs/qm_fast.yaml"), "run it with 01b_run_qm_baselines.py", 2)):
        done = run_program(*base, *flags)
        assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr
