"""Every source of truth keeps the one contract."""

import numpy as np
import pytest

from conftest import molecule_from_smiles
from kstep.config import QM_CONFIGS, MDConfig, QMConfig
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec, mm_spec, qm_spec
from kstep.forces.pool import EvaluationPool

TBLITE_BY_ASE = dict(calculator="tblite.ase:TBLite", kwargs={"method": "GFN2-xTB", "accuracy": 0.01, "verbosity": 0})
# backend, molecule, settings, and how much a rotation may change the energy (kJ/mol): a DFT grid has axes of its own
CONFORMANT = {
    "tblite GFN2-xTB": ("tblite", "ethanol", {}, 1e-4),
    "tblite GFN1-xTB": ("tblite", "ethanol", {"method": "GFN1-xTB"}, 1e-4),
    "xtb GFN2-xTB": ("xtb", "ethanol", {}, 1e-4),
    "xtb GFN1-xTB": ("xtb", "ethanol", {"method": "GFN1-xTB"}, 1e-4),
    "xtb GFN-FF": ("xtb", "ethanol", {"method": "GFN-FF"}, 1e-4),
    "openmm MMFF94": ("openmm", "ethanol", {}, 1e-4),
    "pyscf HF/STO-3G": ("pyscf", "water", {"functional": "HF", "basis": "STO-3G"}, 1e-4),
    "pyscf DF-PBE/STO-3G": ("pyscf", "water", {"basis": "STO-3G", "grid_level": 1, "density_fit": True}, 0.5),
    "ase TBLite": ("ase", "ethanol", TBLITE_BY_ASE, 1e-4),
    "ase smeared": ("ase", "water", {"calculator": "wrong_calculators:Smeared"}, 1e-4),
    "ase smeared in silence": ("ase", "water", {"calculator": "wrong_calculators:SmearedInSilence"}, 1e-4),
    "ase EMT": ("ase", "ethanol", {"calculator": "ase.calculators.emt:EMT"}, 1e-4),
}


def spec_of(backend, molecule, tmp_path=None, **settings):
    if backend == "openmm":
        import openmm
        from rdkit import Chem

        from kstep.molecules import build_system

        system = build_system(Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)), "mmff94")
        (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
        return mm_spec(molecule, MDConfig(), tmp_path)
    if backend == "xtb":
        pytest.importorskip("xtb.interface")
    if backend in ("tblite", "xtb"):
        settings = {"accuracy": 0.01, **settings}
    return qm_spec(molecule, QM_CONFIGS[backend](backend=backend, **settings), warm_start=False)


def build(backend, molecule, tmp_path=None, **settings):
    return spec_of(backend, molecule, tmp_path, **settings).build()


@pytest.mark.parametrize("case", CONFORMANT)
def test_backend_keeps_the_contract(case, request, tmp_path):
    """Gradient, invariances, untouched input, counted calls, one geometry or a batch: what dynamics relies on."""
    backend, name, settings, turn_kJ = CONFORMANT[case]
    molecule = request.getfixturevalue(name)
    spec = spec_of(backend, molecule, tmp_path, **settings)
    physics = spec.build()
    rng = np.random.default_rng(0)
    n_atoms = len(molecule.numbers)
    x = molecule.conformers[0] + rng.normal(size=(n_atoms, 3)) * 0.003
    kept = x.copy()
    energy, forces = physics.energy_and_forces(x)
    assert forces.shape == (n_atoms, 3) and np.array_equal(x, kept)
    assert physics.energy(x) == pytest.approx(energy, abs=1e-6)
    assert physics.true_calls == 2

    step = 1e-4
    for atom, axis in ((0, 0), (2, 1), (n_atoms - 1, 2)):
        d = np.zeros_like(x)
        d[atom, axis] = step
        slope = (physics.energy(x + d) - physics.energy(x - d)) / (2 * step)
        assert -slope == pytest.approx(forces[atom, axis], abs=0.3 + 1e-4 * abs(slope))

    assert np.abs(forces.sum(axis=0)).max() < 0.05
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned, turned_forces = physics.energy_and_forces(x @ rotation.T + 0.3)
    assert turned == pytest.approx(energy, abs=turn_kJ)
    assert np.abs(turned_forces - forces @ rotation.T).max() < max(0.05, 200 * turn_kJ)
    assert physics.energy(x + 0.3) == pytest.approx(energy, abs=1e-4)

    batch = x + np.array([0.0, 1e-3, 0.0])[:, None, None] * rng.normal(size=x.shape)
    batch[2, 1] = batch[2, 0]
    with EvaluationPool(spec, 2) as pool:
        truth = pool.evaluate(batch)
        assert truth.failed.tolist() == [False, False, True] and pool.true_calls == 3
    single = [physics.energy_and_forces(positions) for positions in batch[:2]]
    assert truth.energy[:2] == pytest.approx([e for e, _ in single], abs=1e-6)
    assert np.abs(truth.forces[:2] - [f for _, f in single]).max() < 1e-3


def test_a_conformant_energy_is_in_kJ_per_mol_and_forces_per_nm():
    """A hydrogen molecule has -1.1167 Ha at RHF/STO-3G and 1.4 bohr (Szabo and Ostlund, section 3.5.2)."""
    spec = PhysicsSpec("pyscf", np.array([1, 1]), np.ones(2), dict(functional="HF", basis="STO-3G"))
    energy = spec.build().energy(np.array([[0, 0, 0], [0, 0, 1.4 * 0.0529177210903]]))
    assert energy == pytest.approx(-1.1167 * 2625.4996, abs=0.0001 * 2625.5)


@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
def test_tblite_and_xtb_agree(ethanol, method):
    a = build("tblite", ethanol, method=method).energy_and_forces(ethanol.conformers[0])
    b = build("xtb", ethanol, method=method).energy_and_forces(ethanol.conformers[0])
    assert a[0] == pytest.approx(b[0], abs=1e-6 * 2625.5)
    assert np.abs(a[1] - b[1]).max() < 0.5


@pytest.mark.parametrize("charge, multiplicity", [(0, 1), (1, 2), (2, 1)])
def test_tblite_behind_ase_is_tblite(water, charge, multiplicity):
    """Charge and spin reach the calculator through the Atoms."""
    own = dict(charge=charge, spin_multiplicity=multiplicity)
    a = build("tblite", water, **own).energy_and_forces(water.conformers[0])
    b = build("ase", water, **TBLITE_BY_ASE, **own).energy_and_forces(water.conformers[0])
    assert a[0] == pytest.approx(b[0], abs=1e-6 * 2625.5)
    assert np.abs(a[1] - b[1]).max() < 0.05


@pytest.mark.parametrize("calculator, kwargs, words", [
    ("tblite.ase", {}, "cannot be built"),
    ("no colon", {}, "must read package.module:Factory"),
    ("tblite.ase:TBLight", {}, "module tblite.ase has no 'TBLight'"),
    ("orca_of_nobody:ORCA", {}, "cannot be imported"),
    ("os:getcwd", {}, "is no ASE calculator with energy and forces"),
    ("pkgutil:resolve_name", {"name": "wrong_calculators:Spring"}, "is no ASE calculator"),  # the class itself
])
def test_what_is_no_calculator_is_refused(water, calculator, kwargs, words):
    from kstep.forces.ase import AsePhysics

    with pytest.raises(UserError, match=words):
        AsePhysics(water.numbers, water.masses, calculator=calculator, kwargs=kwargs)


@pytest.mark.parametrize("wrong, words", [
    ("kJ/mol", "is 96.5 times as steep"), ("sign", "is -1 times as steep"), ("one row", r"forces of shape \(3,\)"),
    ("flat", r"forces of shape \(9,\)"), ("", None)])
def test_a_calculator_whose_forces_are_not_the_slope_of_its_energy_is_refused(water, wrong, words):
    from kstep.forces import check_spec

    spec = spec_of("ase", water, calculator="wrong_calculators:Spring", kwargs={"wrong": wrong})
    if words is None:
        check_spec(spec, water)
        return
    with pytest.raises(UserError, match=words):
        check_spec(spec, water)


def test_an_error_of_a_calculator_is_a_failed_true_call(water):
    physics = build("ase", water, calculator="tblite.ase:TBLite", kwargs={"method": "GFN3-xTB"})
    with pytest.raises(PhysicsError, match="the ASE calculator failed: .*GFN3-xTB"):
        physics.energy(water.conformers[0])
    assert physics.true_calls == 1


def test_gfn_ff_leaves_no_files_behind(ethanol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    physics = build("xtb", ethanol, method="GFN-FF")
    first = physics.energy(ethanol.conformers[0])
    assert physics.energy(ethanol.conformers[0]) == pytest.approx(first, abs=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_gfn_ff_is_one_potential_whatever_geometry_comes_first():
    """Its topology comes from the geometry it is built with; workers and restarts must build the same."""
    pytest.importorskip("xtb.interface")
    aspirin = molecule_from_smiles("CC(=O)Oc1ccccc1C(=O)O", "aspirin", 1)
    x = aspirin.conformers[0]
    rng = np.random.default_rng(0)
    expected = None
    for _ in range(3):
        physics = build("xtb", aspirin, method="GFN-FF")
        if expected is not None:
            physics.energy(x + rng.normal(size=x.shape) * 0.006)
        energy, forces = physics.energy_and_forces(x)
        expected = expected or (energy, forces)
        assert energy == pytest.approx(expected[0], abs=1e-6)
        assert np.abs(forces - expected[1]).max() < 1e-4


def test_warm_and_cold_energies_agree_at_the_accuracy_used_for_sampling(ethanol):
    """metropolis runs cold; this says what a warm start would have cost it."""
    config = QMConfig(accuracy=0.01)
    warm = qm_spec(ethanol, config, warm_start=True).build()
    cold = qm_spec(ethanol, config, warm_start=False).build()
    rng = np.random.default_rng(1)
    for _ in range(5):
        x = ethanol.conformers[0] + rng.normal(size=(9, 3)) * 0.002
        assert warm.energy(x) == pytest.approx(cold.energy(x), abs=1e-4)


@pytest.mark.parametrize("backend, settings", [
    ("tblite", {"accuracy": 0.1}), ("ase", {**TBLITE_BY_ASE, "kwargs": {"accuracy": 0.1, "verbosity": 0}})])
def test_a_cold_energy_depends_on_the_geometry_alone(ethanol, backend, settings):
    physics = build(backend, ethanol, **settings)
    x = ethanol.conformers[0]
    first = physics.energy(x)
    for _ in range(3):
        physics.energy(x + np.random.default_rng(2).normal(size=x.shape) * 0.004)
        assert physics.energy(x) == first


@pytest.mark.parametrize("charge, multiplicity, words", [
    (1, 1, "cannot have spin multiplicity 1; use an even one"),
    (0, 2, "cannot have spin multiplicity 2; use an odd one"),
    (20, 1, "charge \\+20"),
    (0, 0, "spin multiplicity 0"),
])
def test_impossible_electrons_are_refused_before_computing(ethanol, charge, multiplicity, words):
    with pytest.raises(UserError, match=words):
        PhysicsSpec("tblite", ethanol.numbers, ethanol.masses, dict(charge=charge, multiplicity=multiplicity)).build()


def test_unsupported_elements_and_unknown_backends_are_refused(ethanol):
    with pytest.raises(UserError, match="no parameters for Fr"):
        PhysicsSpec("tblite", np.array([87, 1]), np.ones(2)).build()
    with pytest.raises(UserError, match="did you mean 'tblite'"):
        PhysicsSpec("tblit", ethanol.numbers, ethanol.masses).build()


def test_a_method_of_the_other_backend_is_named(ethanol):
    with pytest.raises(UserError, match="backend tblite has no method GFN-FF; it has GFN2-xTB"):
        build("tblite", ethanol, method="GFN-FF")


def test_nonsense_geometries_never_become_a_number(ethanol):
    physics = build("tblite", ethanol)
    x = ethanol.conformers[0]
    fused = x.copy()
    fused[3] = fused[2] + [0.01, 0, 0]
    for bad, words in ((fused, "apart, closer than"), (np.full_like(x, np.nan), "NaN"), (x[:4], "shape")):
        with pytest.raises(PhysicsError, match=words):
            physics.energy_and_forces(bad)
    assert physics.true_calls == 3
    assert np.isfinite(physics.energy(x))


def test_an_scf_that_does_not_converge_is_a_failure_not_a_number(ethanol):
    physics = build("tblite", ethanol, max_iterations=2)
    with pytest.raises(PhysicsError, match="xTB calculation failed"):
        physics.energy(ethanol.conformers[0])


def test_pool_equals_serial_and_counts_every_call(ethanol):
    spec = qm_spec(ethanol, QMConfig(), warm_start=False)
    rng = np.random.default_rng(3)
    x = ethanol.conformers[0] + rng.normal(size=(5, 9, 3)) * 0.003
    x[3, 1] = x[3, 0]
    with EvaluationPool(spec, 1) as serial, EvaluationPool(spec, 2) as parallel:
        a, b = serial.evaluate(x), parallel.evaluate(x)
        assert a.failed.tolist() == b.failed.tolist() == [False, False, False, True, False]
        assert [bool(message) for message in b.messages] == b.failed.tolist()
        good = ~a.failed
        assert np.array_equal(a.energy[good], b.energy[good]) and np.array_equal(a.forces[good], b.forces[good])
        assert serial.true_calls == parallel.true_calls == 5
        bare = parallel.collect(parallel.submit(x, want_forces=False))
        assert np.array_equal(bare.energy[good], a.energy[good]) and np.isnan(bare.forces).all()
        assert bare.failed.tolist() == a.failed.tolist() and parallel.true_calls == 10
        some = parallel.evaluate(x[[0, 4]], rows=np.array([0, 4]))
        assert np.array_equal(some.energy, a.energy[[0, 4]])
        assert parallel.true_calls == 12


def test_pool_reports_a_users_mistake_made_in_a_worker(ethanol):
    with pytest.raises(UserError, match="cannot have spin"):
        EvaluationPool(PhysicsSpec("tblite", ethanol.numbers, ethanol.masses, dict(charge=1)), 2)


def test_system_of_another_molecule_is_refused(ethanol, water, tmp_path):
    build("openmm", ethanol, tmp_path)
    with pytest.raises(UserError, match="9 particles, the molecule 3"):
        mm_spec(water, MDConfig(), tmp_path).build()
