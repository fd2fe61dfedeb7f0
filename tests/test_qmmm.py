"""A QM region in an OpenMM environment is one potential, with exact forces on every atom."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
from openmm import app

from conftest import ROOT, ForceNetwork, run_program
from kstep.cli import qmmm
from kstep.cli.flags import make_parser
from kstep.config import load_config
from kstep.dihedrals import dihedrals_deg
from kstep.errors import PhysicsError, UserError
from kstep.forces import qmmm_spec
from kstep.forces.ase import AseConfig
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.pyscf import PyscfConfig
from kstep.forces.qmmm.coupling import Coupling
from kstep.forces.qmmm.embedding import ENGINES, Answer, Field
from kstep.forces.qmmm.link import Region
from kstep.forces.qmmm.system import divide
from kstep.forces.tblite import QMConfig
from kstep.learning.coupling_fit import fit_coupling
from kstep.learning.earlier import Earlier
from kstep.learning.learn_config import LearnConfig
from kstep.learning.learner import learn
from kstep.learning.region_target import RegionTarget
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.molecules.droplet import read_pdb, settle, solvate
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import prepare_molecule
from kstep.restraints import Bias, Restraint
from kstep.runs.counters import Tally
from kstep.runs.loop import initial_state, macro_steps
from kstep.runs.network_dynamics import Carrier, ShardedCarrier
from kstep.runs.qmmm_network import EmbeddedNetwork
from kstep.runs.qmmm_system import capped_molecule, embed
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import HybridRun, NetworkRecipe
from kstep.schemas import load_trajectory
from kstep.schemes import Checked, Impulse, Metropolis, Plain
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import kinetic_energy
from kstep.stages import region_sampling
from kstep.training.initial_weights import check_dynamics
from kstep.training.label_fit import fit
from kstep.training.labels import Labels

pytest.importorskip("xtb.interface")
SHARP = QMConfig(accuracy=0.01)
DIPEPTIDE = ROOT / "data/alanine_dipeptide.pdb"


def droplet(smiles, n_waters):
    system = solvate(prepare_molecule("solute", smiles, n_conformers=2), n_waters)
    return system, settle(system, 300.0, 0.1, 0)[0]


@pytest.fixture(scope="module")
def methanol():
    return droplet("CO", 4)


@pytest.fixture(scope="module")
def chloroethanol():
    """A cut C-C bond, polar on both sides, in water: every kind of term there is."""
    system, x = droplet("OCCCl", 3)
    return system, x, [0, 1, 4, 5, 6]  # HO-CH2


def with_charges(system, scale):
    """The same force field with the charges of all atoms scaled."""
    found = openmm.XmlSerializer.deserialize(system.system_xml)
    for force in found.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for i in range(force.getNumParticles()):
                charge, sigma, epsilon = force.getParticleParameters(i)
                force.setParticleParameters(i, scale * charge, sigma, epsilon)
    return replace(system, system_xml=openmm.XmlSerializer.serialize(found))


def embedded(network, physics, coupling=None):
    """A network among the MM atoms of a QMMMPhysics, in double precision; its coupling: the force field's if None."""
    environment = physics.environment
    return EmbeddedNetwork(network, environment, coupling or environment.classical, environment.mm_part("Reference"))


def slope(energy, x, atom, axis, step=2e-5):
    d = np.zeros_like(x)
    d[atom, axis] = step
    return (energy(x + d) - energy(x - d)) / (2 * step)


@pytest.mark.parametrize("embedding", ["electrostatic", "mechanical"])
def test_forces_on_qm_and_mm_atoms_are_the_gradient(methanol, embedding):
    system, x = methanol
    physics = qmmm_spec(system, range(6), SHARP, embedding=embedding).build()
    kept = x.copy()
    energy, forces = physics.energy_and_forces(x)
    assert np.array_equal(x, kept) and physics.true_calls == 1 and physics.energy(x) == energy
    for atom, axis in ((0, 0), (1, 1), (5, 2), (6, 0), (7, 1), (12, 2)):
        assert -slope(physics.energy, x, atom, axis) == pytest.approx(forces[atom, axis], abs=0.02)
    assert physics.true_calls == 14


@pytest.mark.parametrize("embedding", ["electrostatic", "mechanical"])
def test_forces_through_a_link_atom_are_the_gradient(chloroethanol, embedding):
    system, x, atoms = chloroethanol
    physics = qmmm_spec(system, atoms, SHARP, embedding=embedding).build()
    assert physics.region.hosts.tolist() == [2] and physics.region.inside.tolist() == [1]
    forces = physics.energy_and_forces(x)[1]
    for atom in (0, 1, 2, 3, 9, 12):  # inside, host, host's neighbours, a water
        for axis in range(3):
            assert -slope(physics.energy, x, atom, axis) == pytest.approx(forces[atom, axis], abs=0.02)


@pytest.mark.parametrize("functional, multiplicity", [("HF", 1), ("PBE", 1), ("HF", 3)])
def test_pyscf_forces_on_qm_and_mm_atoms_are_the_gradient(functional, multiplicity):
    """Water among two; the triplet exercises two spin densities."""
    pytest.importorskip("pyscf")
    system, x = droplet("O", 2)
    config = PyscfConfig(functional=functional, basis="sto-3g", grid_level=1, conv_tol=1e-12)
    physics = qmmm_spec(system, range(3), config, multiplicity=multiplicity).build()
    forces = physics.energy_and_forces(x)[1]
    assert np.abs(forces.sum(axis=0)).max() < 0.1
    for atom, axis in ((0, 0), (1, 2), (3, 1), (4, 0)):
        assert -slope(physics.energy, x, atom, axis, 4e-5) == pytest.approx(forces[atom, axis], abs=0.3)


def test_a_droplet_moves_and_turns_as_one(chloroethanol):
    system, x, atoms = chloroethanol
    physics = qmmm_spec(system, atoms, SHARP).build()
    energy, forces = physics.energy_and_forces(x)
    assert np.abs(forces.sum(axis=0)).max() < 1e-6
    assert np.abs(np.cross(x, forces).sum(axis=0)).max() < 0.01
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned, turned_forces = physics.energy_and_forces(x @ rotation.T + 0.3)
    assert turned == pytest.approx(energy, abs=1e-4)
    assert np.abs(turned_forces - forces @ rotation.T).max() < 0.05


def test_without_charges_both_embeddings_are_the_qm_alone(chloroethanol):
    """The mechanical limit, and what charges do where there are some."""
    system, x, atoms = chloroethanol
    bare = with_charges(system, 0.0)
    a, b = (qmmm_spec(bare, atoms, SHARP, embedding=e).build().energy_and_forces(x)
            for e in ("electrostatic", "mechanical"))
    assert a[0] == pytest.approx(b[0], abs=1e-9) and np.abs(a[1] - b[1]).max() < 1e-9
    c, d = (qmmm_spec(system, atoms, SHARP, embedding=e).build().energy(x) for e in ("electrostatic", "mechanical"))
    assert abs(c - d) > 0.5


def test_a_qm_region_costs_no_mm_energy_of_its_own(methanol):
    """E - E_QM(field) is the water's own energy and its Lennard-Jones terms: nothing of methanol's MMFF94."""
    system, x = methanol
    physics = qmmm_spec(system, range(6), SHARP).build()
    stretched = x.copy()
    stretched[4] += 0.01  # a hydrogen of the QM region; far from the waters
    far = x.copy()
    far[6:] += 50.0  # the waters are gone but for the wall
    rest = []
    for positions in (far, np.concatenate([stretched[:6], far[6:]])):
        rest.append(physics.energy(positions) - physics.extra()["qm_energy"])
    assert rest[0] == pytest.approx(rest[1], abs=1e-6)


def test_link_forces_follow_the_chain_rule_where_atoms_share_one():
    """Two cut bonds at one atom: sum over links, total force and torque kept."""
    numbers, bonds = np.array([6, 6, 6, 8]), np.array([[0, 1], [0, 2], [0, 3]])
    region = Region.cut(numbers, bonds, [0, 3])
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(2, 4, 3)), rng.normal(size=(4, 3))

    def energy(x):
        return float((weights * region.capped(x) ** 2).sum())

    forces = region.spread(-2.0 * weights * region.capped(x), x)
    for atom, axis in np.ndindex(4, 3):
        assert -slope(energy, x[0], atom, axis) == pytest.approx(forces[0, atom, axis], abs=1e-6)
    push = rng.normal(size=(2, 4, 3))
    spread = region.spread(push, x)
    assert spread.sum(1) == pytest.approx(push.sum(1), abs=1e-12)
    assert np.linalg.norm(region.capped(x)[:, 2] - x[:, 0], axis=-1) == pytest.approx(region.lengths_nm[0])


def test_nve_keeps_the_energy(chloroethanol):
    system, x, atoms = chloroethanol
    spec = qmmm_spec(system, atoms, QMConfig())
    rng = np.random.default_rng(0)
    with EvaluationPool(spec, 1) as pool:
        state = initial_state(pool, x[None], draw_velocities(1, system.masses, 300.0, rng))
        total = [float((s.energy + kinetic_energy(s.velocities, system.masses))[0])
                 for s, _ in macro_steps(Plain(system.masses, 0.00025), pool, state, rng, 120)]
        assert pool.true_calls == 121
    assert np.ptp(total) < 1.0  # kJ/mol; velocity Verlet's own ripple at 0.25 fs
    assert abs(np.mean(total[60:]) - np.mean(total[:60])) < 0.2


def test_the_energy_error_of_nve_falls_with_the_square_of_the_timestep(chloroethanol):
    """One potential with its exact forces, link atom and charges included: velocity Verlet's order shows."""
    system, x, atoms = chloroethanol
    spec = qmmm_spec(system, atoms, QMConfig())
    ripple = []
    with EvaluationPool(spec, 1) as pool:
        for dt_fs in (1.0, 0.5, 0.25):
            velocities = draw_velocities(1, system.masses, 300.0, np.random.default_rng(0))
            state, scheme = initial_state(pool, x[None], velocities), Plain(system.masses, 1e-3 * dt_fs)
            ripple.append(np.std([float((s.energy + kinetic_energy(s.velocities, system.masses))[0])
                                  for s, _ in macro_steps(scheme, pool, state, None, round(30 / dt_fs))]))
    assert ripple[0] / ripple[1] == pytest.approx(4.0, rel=0.1) and ripple[1] / ripple[2] == pytest.approx(4.0, rel=0.1)


def test_waters_may_change_places(methanol):
    system, x = methanol
    physics = qmmm_spec(system, range(6), SHARP).build()
    order = np.concatenate([np.arange(6), 6 + np.array([6, 7, 8, 3, 5, 4, 9, 10, 11, 0, 1, 2])])  # one's hydrogens too
    energy, forces = physics.energy_and_forces(x)
    swapped, swapped_forces = physics.energy_and_forces(x[order])
    assert swapped == pytest.approx(energy, abs=1e-5)
    assert np.abs(swapped_forces - forces[order]).max() < 1e-3


def test_the_divided_system_holds_no_charge_of_the_region_twice(chloroethanol):
    """QM-MM Coulomb terms are the QM's; the host's charge goes to its neighbours; nothing is lost."""
    system, _, atoms = chloroethanol
    region = Region.cut(system.numbers, system.bonds, atoms)
    environment = divide(system.system_xml, system.bonds, region)
    field, is_qm = environment.field_charges, np.isin(np.arange(len(system.numbers)), atoms)
    assert not field[is_qm].any() and field[2] == 0.0 and field[3] != 0.0
    own = openmm.XmlSerializer.deserialize(system.system_xml)
    of_force = next(f for f in own.getForces() if isinstance(f, openmm.NonbondedForce))
    charges = np.array([of_force.getParticleParameters(i)[0]._value for i in range(len(field))])
    assert field.sum() == pytest.approx(charges[~is_qm].sum(), abs=1e-12)
    crossing, divided = 0, openmm.XmlSerializer.deserialize(environment.system_xml)
    for force in divided.getForces():
        if isinstance(force, openmm.CustomBondForce) and force.getName().endswith("nonbonded"):
            for b in range(force.getNumBonds()):
                i, j, values = force.getBondParameters(b)
                assert not (is_qm[i] and is_qm[j])
                crossing += is_qm[i] != is_qm[j]
                assert values[2] == 0.0 or is_qm[i] == is_qm[j]
        if isinstance(force, openmm.NonbondedForce):
            assert not any(force.getParticleParameters(int(i))[0]._value for i in atoms)
    assert crossing > 3


def test_what_the_region_lacks_of_a_whole_charge_crosses_the_cut_bond():
    """amber14's ACE-ALA is no neutral group: cut at CA-C it has -0.0294 e, which the capped QM, of charge 0, lacks."""
    system = read_pdb(DIPEPTIDE)
    for atoms in (range(14), range(14, 22)):
        physics = qmmm_spec(system, atoms, SHARP).build()
        assert physics.field_charges.sum() == pytest.approx(0.0, abs=1e-9)
        assert physics.environment.classical.charges.sum() == pytest.approx(0.0, abs=1e-9)
    ionised = qmmm_spec(system, range(14), SHARP, charge=1, multiplicity=2).build()
    assert ionised.field_charges.sum() == pytest.approx(0.0, abs=1e-9)  # the environment takes no part in it


def test_the_region_has_the_charge_of_its_atoms_and_not_of_the_molecule():
    """The neutral half of a cation, and its charged half; MMFF94 leaves almost half an electron beyond the cut."""
    prepared = prepare_molecule("solute", "OCC[NH3+]", n_conformers=2)
    system, neutral, charged = solvate(prepared, 0), [0, 1, 4, 5, 6], [2, 3, 7, 8, 9, 10, 11]
    assert [system.charge_of(atoms) for atoms in (neutral, charged, [3, 9, 10, 11], range(12))] == [0, 1, 1, 1]
    physics = qmmm_spec(system, [3, 9, 10, 11], SHARP, charge=1).build()
    assert physics.field_charges.sum() == pytest.approx(0.0, abs=1e-9)
    assert physics.environment.classical.charges.sum() == pytest.approx(1.0, abs=1e-9)
    peptide = read_pdb(DIPEPTIDE)
    assert peptide.charge_of(range(14)) == 0


def test_the_host_of_two_cut_bonds_is_named():
    numbers, bonds = np.array([6, 6, 6, 6, 6]), np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    with pytest.raises(UserError, match="MM atom 3 is bonded to two QM atoms"):
        Region.cut(numbers, bonds, [1, 2, 4])


class ExactRegion(ForceNetwork):
    """The QM itself in the network's place."""

    metadata = {}

    def __init__(self, physics):
        self.physics = physics

    def energy_and_forces(self, capped):
        none = Field(np.zeros(0), np.zeros(0), np.zeros((0, 3)))
        answers = [self.physics._qm.in_field(x, none) for x in capped]
        return np.array([a.energy for a in answers]), np.array([a.forces for a in answers])


def test_a_perfect_network_is_always_accepted(chloroethanol):
    """Cheap potential = mechanical embedding: dH is the integrator's alone, so force and energy agree everywhere."""
    system, x, atoms = chloroethanol
    spec = qmmm_spec(system, atoms, QMConfig(), embedding="mechanical")
    physics = spec.build()
    inner = embedded(ExactRegion(physics), physics)
    energy, forces = physics.energy_and_forces(x)
    assert inner.energy_and_forces(x[None])[0][0] == pytest.approx(energy, abs=1e-8)
    assert np.abs(inner.forces(x[None])[0] - forces).max() < 1e-6
    scheme = Metropolis(Carrier(inner), system.masses, 0.0002, 8, 300.0)
    rng = np.random.default_rng(2)
    with EvaluationPool(spec, 1) as pool:
        state = initial_state(pool, x[None], np.zeros((1, *x.shape)))
        found = list(macro_steps(scheme, pool, state, rng, 6))
        assert pool.true_calls == 7
    assert all(info.accepted[0] for _, info in found)
    assert max(abs(info.delta_H[0]) for _, info in found) < 0.3


def carried(system, x, atoms):
    """The true physics' recipe, electrostatic, and a carrier with the mechanical potential: a network with an error."""
    physics = qmmm_spec(system, atoms, QMConfig(), embedding="mechanical").build()
    inner = embedded(ExactRegion(physics), physics)
    return qmmm_spec(system, atoms, QMConfig()), Carrier(inner)


def test_impulse_with_one_step_is_plain_and_checked_says_how_far_the_network_is_off(chloroethanol):
    system, x, atoms = chloroethanol
    spec, carry = carried(system, x, atoms)
    velocities = draw_velocities(1, system.masses, 300.0, np.random.default_rng(0))
    ends = {}
    with EvaluationPool(spec, 1) as pool:
        start = initial_state(pool, x[None], velocities)
        for scheme in (Plain(system.masses, 0.0005), Impulse(carry.network, carry, system.masses, 0.0005, 1),
                       Checked(carry.network, carry, system.masses, 0.0005, 1)):
            tally = Tally(scheme)  # checked is the last
            for state, info in macro_steps(scheme, pool, start, None, 12):
                if scheme.name == "checked":
                    tally.add(state, info)
            ends[scheme.name] = state.positions
    assert np.abs(ends["impulse"] - ends["plain"]).max() < 1e-12
    assert np.abs(ends["checked"] - ends["plain"]).max() > 1e-6
    assert tally.certificate.figures()["pairs"] == 12 and tally.certificate.figures()["force_rmse_kJ_per_mol_A"] > 0.1


def exact_region(checkpoint, spec, **_):
    """The QM of a spec in the network's place, for a run's recipe."""
    physics = spec.build()
    return embedded(ExactRegion(physics), physics)


def run_of(system, x, atoms, out, **changes):
    """A run of two replicas with the true potential, electrostatic; a network is the mechanical one."""
    hybrid = HybridConfig(**{**dict(scheme="plain", k_steps=1, dt_fs=0.5, steps=5, burn_in_steps=2, replicas=2,
                                    temperature_K=300.0, store_forces=False, checkpoint_interval=1, inner="numpy"),
                             **changes.pop("hybrid", {})})
    molecule = Molecule("half", "OCCCl", system.numbers, system.masses, system.bonds, np.ones(len(system.bonds)),
                        np.stack([x, x]), np.zeros(2), region=np.array(atoms))
    recipe = NetworkRecipe(exact_region, {"spec": qmmm_spec(system, atoms, QMConfig(), embedding="mechanical")})
    return replace(HybridRun(molecule, qmmm_spec(system, atoms, QMConfig()), "GFN2-xTB", hybrid, None, out, seed=1,
                             recipe=recipe, facts={"qm_atoms": list(atoms)}), **changes)


METROPOLIS = dict(scheme="metropolis", k_steps=3, length_law="uniform")


@pytest.mark.parametrize("kind, settings", [(Plain, dict(thermostat="langevin")), (Metropolis, METROPOLIS)])
def test_a_cut_run_goes_on_bit_by_bit(chloroethanol, tmp_path, monkeypatch, kind, settings):
    def go(name, **changes):
        run = run_of(*chloroethanol, tmp_path / name, hybrid=settings, resume=True)
        return run_hybrid(replace(run, **changes), {}, {}), load_trajectory(tmp_path / name)

    whole, uncut = go("whole.npz")
    settle_as_ever, left = kind.settle, [4]

    def pulled_plug(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return settle_as_ever(*arguments)

    monkeypatch.setattr(kind, "settle", pulled_plug)
    with pytest.raises(KeyboardInterrupt):
        go("cut.npz")
    monkeypatch.setattr(kind, "settle", settle_as_ever)
    with pytest.raises(UserError, match="started with other settings \\(seed was"):
        go("cut.npz", seed=2)
    with pytest.raises(UserError, match="started with other settings \\(.*qm_atoms"):
        go("cut.npz", facts={"qm_atoms": [0]})
    metadata, cut = go("cut.npz")
    for key in ("pos", "vel", "Epot", "time_ps", "segment"):
        assert np.array_equal(getattr(cut, key), getattr(uncut, key)), key
    assert metadata["tally"] == whole["tally"] and len(cut.frames_of("train")) == 10
    assert whole["true_calls"] == 16 and metadata["true_calls"] == 16 and whole["true_calls_burn_in"] == 6
    assert go("cut.npz")[0]["cpu_s"] == metadata["cpu_s"]  # finished: read, not run
    with pytest.raises(UserError, match="is there already, made with other settings"):
        go("cut.npz", seed=2)


def test_dynamics_that_breaks_keeps_its_frames(chloroethanol, tmp_path):
    """3 fs is too long for an O-H stretch: what came before is in the file, which says how it ended."""
    run = run_of(*chloroethanol, tmp_path / "x.npz", hybrid=dict(dt_fs=3.0, steps=400, thermostat="none"))
    with pytest.raises(PhysicsError, match="macro-steps before it are in"):
        run_hybrid(run, {}, {})
    kept = load_trajectory(tmp_path / "x.npz")
    assert kept.metadata["status"].startswith("broke at macro-step") and kept.metadata["qm_atoms"] == chloroethanol[2]
    assert len(kept.frames_of("drift")) == 2 * (int(kept.metadata["status"].split()[3].rstrip(":")) - 2) > 0


def test_two_workers_make_the_run_of_one(chloroethanol, tmp_path):
    runs = []
    for n_workers in (1, 2):
        out = tmp_path / f"{n_workers}.npz"
        run_hybrid(run_of(*chloroethanol, out, hybrid=dict(thermostat="langevin"), n_workers=n_workers), {}, {})
        runs.append(load_trajectory(out))
    for key in ("pos", "vel", "Epot"):
        assert np.array_equal(*(getattr(run, key) for run in runs)), key


def test_two_workers_propose_and_answer_as_one(chloroethanol):
    """The same trajectories of the cheap potential, and what the QM said comes back from any process."""
    system, x, atoms = chloroethanol
    spec = qmmm_spec(system, atoms, QMConfig(), embedding="mechanical")
    rng = np.random.default_rng(0)
    starts = x + 1e-4 * rng.normal(size=(3, *x.shape))
    fused = starts[1].copy()
    fused[6] = fused[1]
    velocities = draw_velocities(3, system.masses, 300.0, rng)
    arguments = {"checkpoint": None, "spec": spec}
    sharded, alone = ShardedCarrier(exact_region, arguments, 2), Carrier(exact_region(**arguments))
    try:
        ends, expected = (carry(starts, velocities, system.masses, 0.0005, 4) for carry in (sharded, alone))
    finally:
        sharded.close()
    assert np.array_equal(ends[0], expected[0]) and np.array_equal(ends[1], expected[1])
    answers = []
    for n_workers in (1, 2):
        with EvaluationPool(spec, n_workers) as pool:
            answers.append(pool.evaluate(np.stack([ends[0][0], fused, ends[0][2]])))
            assert pool.evaluate(fused[None]).extra == {}  # nothing was said
            assert pool.true_calls == 4
    one, two = answers
    physics = spec.build()
    physics.energy_and_forces(ends[0][2])
    for name, said in physics.extra().items():
        assert np.array_equal(one.extra[name], two.extra[name], equal_nan=True)
        assert np.array_equal(one.extra[name][2], said) and np.isnan(one.extra[name][1]).all()
    assert np.array_equal(one.energy, two.energy, equal_nan=True) and one.failed.tolist() == [False, True, False]


def test_the_example_takes_a_pdb_file_and_a_network_learned_in_vacuo(tmp_path):
    """A network of another random function than the truth: nothing is accepted, everything runs."""
    system, atoms = read_pdb(DIPEPTIDE), [10, 11, 12, 13]
    region = Region.cut(system.numbers, system.bonds, atoms)
    x = settle(system, 300.0, 0.02, 0, 30)
    capped = capped_molecule(region, system, x, 0, 1)
    labels = Labels(capped.conformers, np.random.default_rng(0).normal(size=30),
                    np.random.default_rng(1).normal(size=(30, 5, 3)), np.full(30, 300.0))
    model = load_config(ModelConfig, ROOT / "configs/model_pair_mlp.yaml")
    checkpoints.save(tmp_path / "net.pt", fit(model, capped, labels, LearnConfig(), method="GFN2-xTB", true_calls=30,
                                              dt_fs=1.0, temperature_K=300.0, seed=0, passes=1.0).checkpoint)
    arguments = ("src/qmmm_example.py", "--pdb", DIPEPTIDE, "--qm-atoms", *atoms, "--checkpoint", tmp_path / "net.pt",
                 "--scheme", "checked", "--k-steps", 2, "--dt-fs", 0.25, "--steps", 3, "--burn-in-steps", 1,
                 "--replicas", 2, "--device", "cpu", "--model-config", "configs/model_pair_mlp.yaml")
    done = run_program(*map(str, arguments), "--out", str(tmp_path / "x.npz"))
    assert done.returncode == 0, done.stderr
    run = load_trajectory(tmp_path / "x.npz")
    assert run.metadata["link_hosts"] == [8] and run.metadata["true_calls_training"] == 30
    assert len(run.frames_of("drift")) == 6 and run.metadata["certificate"]["pairs"] == 6
    assert run.metadata["coupling"]["charges"][:1] == [pytest.approx(-0.1825 + 0.0016)]  # the force field's


def test_the_cheap_potential_is_one_potential(chloroethanol):
    """With link atom, response and damping: its force is the gradient of its energy."""
    system, x, atoms = chloroethanol
    physics = qmmm_spec(system, atoms, SHARP).build()
    rng = np.random.default_rng(3)
    response = rng.normal(size=(6, 6)) * 1e-5
    coupling = Coupling(rng.normal(size=6) * 0.2, response + response.T, 0.1)

    class Springs(ForceNetwork):
        metadata = {}

        def __init__(self):
            pass

        def energy_and_forces(self, capped):
            return 1e3 * (capped[:, 1:] - capped[:, :1]).__pow__(2).sum((1, 2)), 2e3 * np.concatenate(
                [(capped[:, 1:] - capped[:, :1]).sum(1, keepdims=True), capped[:, :1] - capped[:, 1:]], axis=1)

    inner = embedded(Springs(), physics, coupling)
    forces = inner.forces(x[None])[0]
    for atom in (0, 1, 2, 3, 11, 14):
        assert -slope(lambda y: inner.energy_and_forces(y[None])[0][0], x, atom, 1) == pytest.approx(
            forces[atom, 1], abs=1e-2)
    again = Coupling.from_lists(coupling.as_lists())
    assert np.array_equal(again.response, coupling.response) and again.damping_nm == coupling.damping_nm
    broken = x.copy()
    broken[0] = np.nan
    assert np.isnan(inner.energy_and_forces(broken[None])[0][0])


HELD = (Restraint(kind="dihedral", atoms=(0, 1, 2, 3), centre=40.0, k=300.0),
        Restraint(kind="distance", atoms=(0, 9), centre=0.4, k=3000.0))  # of the molecule, and to a water


def test_the_cheap_potential_holds_restraints_in_the_part_that_no_ladder_heats(chloroethanol):
    system, x, atoms = chloroethanol
    physics = qmmm_spec(system, atoms, QMConfig()).build()
    free, held = (EmbeddedNetwork(ExactRegion(physics), physics.environment, physics.environment.classical,
                                  physics.environment.mm_part("Reference"), restraints) for restraints in ((), HELD))
    energy, forces = Bias(HELD).energy_and_forces(x[None])
    assert energy[0] > 1.0
    assert held.energy_parts(x[None]) - free.energy_parts(x[None]) == pytest.approx(np.array([[0.0, 0.0, energy[0]]]),
                                                                                    abs=1e-7)
    assert held.forces(x[None]) - free.forces(x[None]) == pytest.approx(forces, abs=1e-6)
    scale = np.array([[0.3, 0.6, 0.5]])
    assert held.forces(x[None], scale) - free.forces(x[None], scale) == pytest.approx(0.5 * forces, abs=1e-6)


def test_starts_of_a_region_settle_under_its_restraints():
    held = Restraint(kind="dihedral", atoms=(0, 1, 2, 3), centre=60.0, k=500.0)
    prepared = prepare_molecule("solute", "OCCCl", n_conformers=2)
    found = embed("x", solvate(prepared, 2), range(len(prepared.molecule)), QMConfig(), n_starts=2, restraints=(held,))
    assert found.spec.restraints == (held,)
    assert np.abs(dihedrals_deg(found.molecule.conformers, np.array([held.atoms])) - 60.0).max() < 25.0
    with pytest.raises(UserError, match="names atom 99, but the molecule has atoms 0 to 14"):
        embed("x", solvate(prepared, 2), range(3), QMConfig(),
              restraints=(Restraint(kind="distance", atoms=(0, 99), centre=0.2, k=1.0),))


def test_a_held_region_keeps_the_energy_that_holds_it_apart(chloroethanol, tmp_path):
    """Plain QM/MM in NVE: true energy and restraint together are conserved, and stored apart."""
    system, x, atoms = chloroethanol
    run = run_of(system, x, atoms, tmp_path / "x.npz", hybrid=dict(steps=12, thermostat="none", restraints=HELD))
    run_hybrid(replace(run, spec=replace(run.spec, restraints=HELD)), {}, {})
    found = load_trajectory(tmp_path / "x.npz")
    assert found.bias == pytest.approx(Bias(HELD).energy(found.pos), rel=1e-9) and found.bias.min() > 1.0
    bare = run.spec.build()
    assert found.Epot[-1] == pytest.approx(bare.energy(found.pos[-1]), abs=1e-3)
    rows = found.replica == 0
    total = (found.Epot + found.Ekin + found.bias)[rows]
    assert np.ptp(total) < 0.5 * np.ptp((found.Epot + found.Ekin)[rows])


LEARN = LearnConfig(learn_replicas=4, bootstrap_labels_per_atom=6, fit_cost_calls=0.0, round_passes=30,
                    round_growth=0.4, fit_passes=40, fit_lr=0.02, verify_proposals=12)


@pytest.fixture(scope="module")
def learnable():
    """Methanol among two waters as a target, and what learns it within n true calls."""
    system = embed("x", solvate(prepare_molecule("solute", "CO", n_conformers=2), 2), range(6), QMConfig(), smiles="CO",
                   n_starts=2)
    target = RegionTarget(molecule=system.molecule, region=system.region, spec=system.spec, method="GFN2-xTB",
                          temperatures_K=(300.0,), length_fs=20.0, starts_K=300.0, inner_dt_fs=1.0, about=system.facts)

    def learn_it(folder, most_true_calls, **more):
        return learn(target, ModelConfig(arch="pair_mlp", pair_hidden=[24, 24]), LEARN, folder=folder, seed=1,
                     most_true_calls=most_true_calls, **more)

    return target, learn_it


def rounds(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_cut_learning_goes_on_to_the_same_network_and_coupling(learnable, tmp_path, monkeypatch):
    _, learn_it = learnable
    whole = checkpoints.load(learn_it(tmp_path / "whole", 160))
    *before, last = rounds(tmp_path / "whole")
    assert 136 < last["true_calls_training"] <= 160  # it ends within its budget, or before, when it is confirmed
    assert sum(r["what"] == "verify" for r in before) <= 1 and len(before) > 2 and whole["coupling"]["charges"]
    assert whole["d_spread_kT"] == last["spread_kT"][0] < 1.5 and last["ladder_K"] == [300.0]  # no ladder of a solvent
    with pytest.raises(UserError, match="60 true calls are too few to learn 6 atoms with 4 chains; give at least 76"):
        learn_it(tmp_path / "few", 60)
    original, fits = RegionTarget.fit, []

    def cut(*arguments, **how):
        fits.append(1)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **how)

    monkeypatch.setattr(RegionTarget, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        learn_it(tmp_path / "cut", 160)
    monkeypatch.setattr(RegionTarget, "fit", original)
    resumed = checkpoints.load(learn_it(tmp_path / "cut", 160, resume=True))
    assert all(np.array_equal(resumed["state_dict"][name], value) for name, value in whole["state_dict"].items())
    assert resumed["coupling"] == whole["coupling"]
    assert resumed["true_calls_training"] == whole["true_calls_training"]
    with pytest.raises(UserError, match="learned with other settings"):
        learn_it(tmp_path / "cut", 170, resume=True)


def test_labels_are_what_the_qm_said_of_the_region_in_its_field(learnable, tmp_path):
    """They come back from their file whole, and training by itself refuses them."""
    target, _ = learnable
    x = target.molecule.conformers
    with EvaluationPool(target.spec, 1) as pool:
        own = target.labels(x, pool.evaluate(x), 300.0)
    physics = target.spec.build()
    for s in range(2):
        answer = physics._qm.in_field(physics.region.capped(x[s]), physics.field_at(x[s]))
        assert own.energies[s] == answer.energy and np.array_equal(own.forces[s], answer.forces)
        assert np.array_equal(own.extra["field_forces"][s], answer.field_forces)
        assert np.array_equal(own.extra["field"][s], x[s][physics.field_atoms])
    own.save(tmp_path / "labels.npz", target.labelled, method="GFN2-xTB", true_calls=2, dt_fs=1.0)
    again, metadata = Labels.load(tmp_path / "labels.npz")
    assert again.sha256() == own.sha256() and set(again.extra) == {"field", "field_forces"}
    with pytest.raises(UserError, match="labels of a QM region"):
        check_dynamics(metadata, ModelConfig().heads, "labels.npz")


def test_labels_given_beside_learning_are_learned_of(tmp_path, monkeypatch):
    learned = {}
    system = SimpleNamespace(molecule=None, region=None, spec=None, facts={})
    run = SimpleNamespace(hybrid=HybridConfig(scheme="metropolis"))
    monkeypatch.setattr(region_sampling, "_system", lambda settings: system)
    monkeypatch.setattr(region_sampling, "learn_for", lambda *_, **how: learned.update(how))
    monkeypatch.setattr(region_sampling, "prepare_run", lambda *_, **__: run)
    monkeypatch.setattr(region_sampling, "run_hybrid", lambda *_: {"status": "finished"})
    hybrid = HybridConfig(scheme="metropolis", steps=2, burn_in_steps=0, dt_fs=1.0, k_steps=2)
    done = region_sampling.sample_region(region_sampling.RegionSettings(
        qm=QMConfig(), hybrid=hybrid, out=tmp_path / "x.npz", labels=tmp_path / "labels.npz", n_workers=1))
    assert done["status"] == "finished" and learned["earlier"] == Earlier(None, tmp_path / "labels.npz")


class SpringsInField:
    """A cheap QM: springs, and point charges in the field."""

    own = Coupling(np.array([-0.9, 0.45, 0.45]), None, 0.05)

    def __init__(self, numbers, masses, **_):
        pass

    def forget(self):
        pass

    @staticmethod
    def springs(x, stiffness=3.0e4):
        """Energy (R,) and forces (R,3,3) of three pairs at x (R,3,3)."""
        apart = x[:, [1, 2, 2]] - x[:, [0, 0, 1]]
        r = np.linalg.norm(apart, axis=-1)
        stretch = r - [0.096, 0.096, 0.152]
        pull = (stiffness * stretch / r)[..., None] * apart
        return 0.5 * stiffness * (stretch**2).sum(1), np.stack(
            [pull[:, 0] + pull[:, 1], pull[:, 2] - pull[:, 0], -pull[:, 1] - pull[:, 2]], axis=1)

    def in_field(self, positions, field):
        energy, forces = (a[0] for a in self.springs(positions[None]))
        coupled, on_sites, on_field = self.own.energy_and_forces(positions, field.positions, field.charges)
        return Answer(float(energy + coupled), forces + on_sites, on_field)


class WrongSprings(ForceNetwork):
    """A network that is off by a tenth."""

    metadata = {}

    def __init__(self):
        pass

    def energy_and_forces(self, capped):
        return SpringsInField.springs(capped, 3.3e4)


def test_a_wrong_network_and_a_wrong_coupling_still_sample_the_true_potential(monkeypatch):
    """Two waters, one QM: the mean energies of the ensemble that plain dynamics in a thermostat samples."""
    monkeypatch.setitem(ENGINES, "springs", SpringsInField)
    system = solvate(prepare_molecule("solute", "O", n_conformers=1), 1)
    spec = qmmm_spec(system, range(3), QMConfig())
    spec = replace(spec, settings={**spec.settings, "engine": "springs"})
    physics, rng = spec.build(), np.random.default_rng(0)
    wrong = embedded(WrongSprings(), physics, Coupling(np.array([-0.5, 0.3, 0.2]), None, 0.0))
    starts = settle(system, 300.0, 0.2, 0, 16)
    means = {}
    with EvaluationPool(spec, 1) as pool:
        exact = Metropolis(Carrier(wrong), system.masses, 0.001, 30, 300.0, length_law="uniform")
        blind = Metropolis(Carrier(wrong), system.masses, 0.001, 30, 300.0, length_law="uniform")
        blind.settle = lambda state, info, proposal, truth, rng: exact.settle(
            state, info, replace(proposal, extra={**proposal.extra, "log_u": np.full(16, -np.inf)}), truth, rng)
        reference = Plain(system.masses, 0.001)
        for name, scheme, n, thermostat in (("exact", exact, 300, None), ("blind", blind, 150, None),
                                            ("plain", reference, 3000, LangevinThermostat(300.0, 5.0, system.masses))):
            state, seen = initial_state(pool, starts, draw_velocities(16, system.masses, 300.0, rng)), []
            for state, _ in macro_steps(scheme, pool, state, rng, n, thermostat=thermostat):
                seen.append(np.stack([SpringsInField.springs(state.positions[:, :3])[0], state.energy], axis=1))
            of_chains = np.array(seen)[n // 10:].mean(0)
            means[name] = of_chains.mean(0), of_chains.std(0, ddof=1) / 4.0
    for name, far in (("exact", False), ("blind", True)):
        apart, error = means[name][0] - means["plain"][0], np.hypot(means[name][1], means["plain"][1])
        print(name, apart, error)
        assert (np.abs(apart) > 5 * error).any() if far else (np.abs(apart) < 4 * error).all()


def test_charges_are_found_again_from_the_forces_they_exert():
    rng = np.random.default_rng(4)
    true = Coupling(np.array([-0.6, 0.2, 0.4]), None, 0.08)
    sites = rng.normal(size=(12, 3, 3)) * 0.1
    field = rng.normal(size=(12, 20, 3))
    field *= (0.35 + 0.3 * rng.random((12, 20, 1))) / np.linalg.norm(field, axis=-1, keepdims=True)
    charges = rng.normal(size=20)
    forces = true.energy_and_forces(sites, field, charges)[2]
    found = fit_coupling(sites, field, charges, forces)
    assert found.damping_nm == 0.08
    assert found.charges == pytest.approx(true.charges, abs=0.01)
    assert found.energy_and_forces(sites, field, charges)[0] == pytest.approx(
        true.energy_and_forces(sites, field, charges)[0], abs=0.5)


def test_the_capped_region_is_a_molecule_of_its_own(chloroethanol):
    system, x, atoms = chloroethanol
    region = Region.cut(system.numbers, system.bonds, atoms)
    capped = capped_molecule(region, system, x[None], 0, 1)
    assert sorted(capped.numbers.tolist()) == [1, 1, 1, 1, 6, 8]  # methanol
    assert len(capped.bonds) == 5 and [1, 5] in capped.bonds.tolist()


def change(system, edit):
    found = openmm.XmlSerializer.deserialize(system.system_xml)
    edit(found)
    return replace(system, system_xml=openmm.XmlSerializer.serialize(found))


@pytest.mark.parametrize("atoms, words", [
    ([0, 1, 1], "QM atom 1 is named twice"),
    ([0, 99], "QM atom 99 is not in the system"),
    ([-1], "QM atom -1 is not in the system"),
    ([], "leaves nothing for the QM"),
    (range(18), "leaves no environment"),
    ([0, 1, 2, 3, 4], "one of which is a hydrogen"),
])
def test_impossible_regions_are_refused(methanol, atoms, words):
    with pytest.raises(UserError, match=words):
        qmmm_spec(methanol[0], atoms, SHARP).build()


@pytest.mark.parametrize("smiles, atoms, words", [
    ("CC#CC", [0, 1, 4, 5, 6], "cuts the bond of atoms 1 and 2, which has order 3"),
    ("c1ccccc1", [0, 1, 2, 3, 6, 7, 8, 9], "which has order 1.5"),
    ("C1CCCCC1", [0, 1, 2, 6, 7, 8, 9, 10, 11], None),
])
def test_a_cut_crosses_single_bonds_alone(smiles, atoms, words):
    system = solvate(prepare_molecule("solute", smiles, n_conformers=1), 1)
    if words is None:
        qmmm_spec(system, atoms, SHARP).build()
        return
    with pytest.raises(UserError, match=words):
        qmmm_spec(system, atoms, SHARP).build()


@pytest.mark.parametrize("change, words", [
    (lambda line: line[:30] + "".join(f"{float(line[c:c + 8]) / 10:8.3f}" for c in (30, 38, 46)) + line[54:],
     "A apart"),
    (lambda line: line[:30] + "     nan" + line[38:], "NaN"),
])
def test_coordinates_that_are_none_are_refused(tmp_path, change, words):
    """In nm, say; a minimiser would make something of them."""
    lines = [change(line) if line.startswith("ATOM") else line for line in DIPEPTIDE.read_text().splitlines()]
    (tmp_path / "x.pdb").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=words):
        read_pdb(tmp_path / "x.pdb")


def test_impossible_environments_are_refused(methanol):
    system, _ = methanol
    for edit, words in ((lambda s: s.addConstraint(6, 7, 0.09572), "1 rigid bonds; the schemes need a flexible one"),
                        (lambda s: s.setParticleMass(6, 0.0), "massless"),
                        (lambda s: s.addForce(openmm.CustomExternalForce("x^2")), "CustomExternalForce, which cannot")):
        with pytest.raises(UserError, match=words):
            qmmm_spec(change(system, edit), range(6), SHARP).build()
    with pytest.raises(UserError, match="holds no OpenMM System"):
        qmmm_spec(replace(system, system_xml="<x/>"), range(6), SHARP).build()


def test_backends_without_point_charges_are_refused(methanol):
    with pytest.raises(UserError, match="backend 'ase' computes no forces on point charges"):
        qmmm_spec(methanol[0], range(6), AseConfig(calculator="ase.calculators.emt:EMT")).build()
    with pytest.raises(UserError, match="GFN-FF feels no point charges"):
        qmmm_spec(methanol[0], range(6), QMConfig(backend="xtb", method="GFN-FF")).build()


@pytest.mark.parametrize("settings, words", [
    (dict(charge=1), "cannot have spin multiplicity 1"),
    (dict(multiplicity=2), "cannot have spin multiplicity 2"),
    (dict(embedding="electrostatics"), "did you mean 'electrostatic'"),
])
def test_impossible_electrons_and_embeddings_are_refused(methanol, settings, words):
    with pytest.raises(UserError, match=words):
        qmmm_spec(methanol[0], range(6), SHARP, **settings).build()


def test_rigid_and_periodic_water_is_refused():
    """As OpenMM makes it by default."""
    pdb = app.Modeller(app.Topology(), [] * openmm.unit.nanometer)
    field = app.ForceField("amber14/tip3p.xml")
    pdb.addSolvent(field, boxSize=openmm.Vec3(2, 2, 2) * openmm.unit.nanometer, neutralize=False)
    n = pdb.topology.getNumAtoms()
    bonds = [[i.index, j.index] for i, j in pdb.topology.bonds()]
    for options, words in ((dict(nonbondedMethod=app.NoCutoff), "rigid bonds"),
                           (dict(nonbondedMethod=app.PME, nonbondedCutoff=0.9, rigidWater=False), "is periodic")):
        xml = openmm.XmlSerializer.serialize(field.createSystem(pdb.topology, **options))
        with pytest.raises(UserError, match=words):
            divide(xml, bonds, Region.cut(np.tile([8, 1, 1], n // 3), bonds, [0, 1, 2]))


def test_unknown_residues_are_refused(tmp_path):
    (tmp_path / "x.pdb").write_text(
        "HETATM    1  C   XYZ A   1       0.000   0.000   0.000  1.00  0.00           C\nEND\n")
    with pytest.raises(UserError, match="No template found for residue 0 \\(XYZ\\)"):
        read_pdb(tmp_path / "x.pdb")
    with pytest.raises(UserError, match="does not exist"):
        read_pdb(tmp_path / "y.pdb")
    (tmp_path / "z.pdb").write_text("no atoms at all\n")
    with pytest.raises(UserError, match="z.pdb holds no atoms"):
        read_pdb(tmp_path / "z.pdb")


def test_atoms_on_top_of_each_other_never_become_a_number(methanol):
    system, x = methanol
    physics = qmmm_spec(system, range(6), SHARP).build()
    fused = x.copy()
    fused[6] = fused[1] + [0.01, 0, 0]
    with pytest.raises(PhysicsError, match="apart, closer than"):
        physics.energy_and_forces(fused)
    assert physics.true_calls == 1


def test_set_changes_the_run_also_where_the_config_of_the_qm_has_the_key():
    parser = make_parser("qmmm")
    qmmm.add_flags(parser)
    keys = ("dt_fs=0.25", "replicas=7", "friction_per_ps=2", "save_interval_steps=3", "temperature_K=350", "threads=2")
    flags = [word for key in keys for word in ("--set", key)]
    qm, run = qmmm.settings_of(parser.parse_args(["--out", "x.npz", *flags]))
    assert (run.dt_fs, run.replicas, run.friction_per_ps, run.save_interval_steps) == (0.25, 7, 2.0, 3)
    assert (qm.temperature_K, qm.threads) == (350.0, 2)


@pytest.mark.parametrize("flags, words", [
    (("--waters", "99999"), "a droplet of 99999 waters cannot be built"),
    (("--qm-atoms", "0", "77"), "QM atom 77 is not in the molecule"),
    (("--scheme", "plain", "--k-steps", "5"), "k is 1"),
    (("--thermostat", "langevin"), "draws its own momenta"),
    (("--pdb", "nowhere.pdb"), "--pdb needs --qm-atoms"),
    (("--learn-calls", "10"), "10 true calls are too few"),
    (("--scheme", "plain", "--checkpoint", "network.pt"), "plain carries nothing with a network"),
    (("--scheme", "plain", "--hydrogen-mass", "2"), "plain carries nothing with a network"),
    (("--checkpoint", "network.pt", "--learn-calls", "900"), "learns nothing"),
    (("--checkpoint", "network.pt"), "network.pt does not exist"),
    (("--pdb", "nowhere.pdb", "--qm-atoms", "0", "--waters", "2"), "the waters of --pdb are in its file"),
    (("--dt-fs", "100"), "a timestep of 100 fs carries no molecule"),
    (("--restrain", "distance:0-99:0.2:1"), "names atom 99, but the molecule has atoms 0 to 11"),
    (("--set", "relax_starts=true"), "relax_starts is of conformers"),
    (("--delayed-steps", "2"), "unrecognized arguments: --delayed-steps 2"),  # there is no --delay-with
])
def test_the_example_answers_bad_input_in_one_sentence(tmp_path, flags, words):
    molecule = () if "--pdb" in flags else ("--smiles", "CO", "--waters", "2")
    done = run_program("src/qmmm_example.py", *molecule, "--out", tmp_path / "x.npz", *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
