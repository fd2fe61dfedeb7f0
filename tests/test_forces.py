"""Every source of truth keeps the one contract."""

import numpy as np
import pytest

from conftest import molecule_from_smiles
from kstep.config import MDConfig, QMConfig
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec, mm_spec, qm_spec
from kstep.forces.pool import EvaluationPool


def build(backend, molecule, tmp_path=None, **settings):
    if backend == "openmm":
        import openmm

        from rdkit import Chem

        from kstep.forcefields import build_system

        system = build_system(Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)), "mmff94")
        (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
        return mm_spec(molecule, MDConfig(), tmp_path).build()
    if backend == "xtb":
        pytest.importorskip("xtb.interface")
    config = QMConfig(backend=backend, **{"accuracy": 0.01, **settings})
    return qm_spec(molecule, config, warm_start=False).build()


@pytest.mark.parametrize("backend", ["tblite", "xtb", "openmm"])
def test_backend_keeps_the_contract(backend, ethanol, tmp_path):
    """Gradient, invariances, untouched input, counted calls: what dynamics relies on."""
    physics = build(backend, ethanol, tmp_path)
    rng = np.random.default_rng(0)
    x = ethanol.conformers[0] + rng.normal(size=(9, 3)) * 0.003
    kept = x.copy()
    energy, forces = physics.energy_and_forces(x)
    assert forces.shape == (9, 3) and np.array_equal(x, kept)
    assert physics.energy(x) == pytest.approx(energy, abs=1e-6)
    assert physics.true_calls == 2

    step = 1e-4
    for atom, axis in ((0, 0), (2, 1), (8, 2)):
        d = np.zeros_like(x)
        d[atom, axis] = step
        slope = (physics.energy(x + d) - physics.energy(x - d)) / (2 * step)
        assert -slope == pytest.approx(forces[atom, axis], abs=0.3 + 1e-4 * abs(slope))

    assert np.abs(forces.sum(axis=0)).max() < 0.05
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned, turned_forces = physics.energy_and_forces(x @ rotation.T + 0.3)
    assert turned == pytest.approx(energy, abs=1e-4)
    assert np.abs(turned_forces - forces @ rotation.T).max() < 0.05


def test_tblite_and_xtb_agree(ethanol):
    a = build("tblite", ethanol).energy_and_forces(ethanol.conformers[0])
    b = build("xtb", ethanol).energy_and_forces(ethanol.conformers[0])
    assert a[0] == pytest.approx(b[0], abs=1e-6 * 2625.5)
    assert np.abs(a[1] - b[1]).max() < 0.5


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


def test_a_cold_energy_depends_on_the_geometry_alone(ethanol):
    physics = build("tblite", ethanol, accuracy=0.1)
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
        some = parallel.evaluate(x[[0, 4]], rows=np.array([0, 4]))
        assert np.array_equal(some.energy, a.energy[[0, 4]])
        assert parallel.true_calls == 7


def test_pool_reports_a_users_mistake_made_in_a_worker(ethanol):
    with pytest.raises(UserError, match="cannot have spin"):
        EvaluationPool(PhysicsSpec("tblite", ethanol.numbers, ethanol.masses, dict(charge=1)), 2)


def test_system_of_another_molecule_is_refused(ethanol, water, tmp_path):
    build("openmm", ethanol, tmp_path)
    with pytest.raises(UserError, match="9 particles, the molecule 3"):
        mm_spec(water, MDConfig(), tmp_path).build()
