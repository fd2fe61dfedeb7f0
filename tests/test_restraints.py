"""Restraints: their slope, where they are added, what is stored of them, and that sampling under them is exact."""

import json
from dataclasses import replace

import numpy as np
import openmm
import pytest

from conftest import ForceNetwork, start_state
from kstep.config import load_config
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.forces import PhysicsSpec
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig, add_restraints, ask, make_context
from kstep.forces.pool import Truth
from kstep.learning.target import Target
from kstep.models.restrained import RestrainedNetwork
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import molecule_from_smiles
from kstep.molecules.restrained import led_to
from kstep.restraints import Bias, Restraint, mirrored_alike, parse_restraint, values_of
from kstep.runs.loop import macro_steps
from kstep.runs.network_dynamics import Carrier
from kstep.runs.run_network import recipe_of
from kstep.schemas import Trajectory, complete_trajectory, join_trajectories, load_trajectory
from kstep.schemes import Impulse, Jump, Metropolis
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.jump import JumpLimits
from kstep.schemes.nested import means_of
from kstep.schemes.state import kinetic_energy
from kstep.units import kT
from test_nested import mean_and_error, nested, radial_mean, soft_spring
from test_sampler import K_BOND, MASSES, R_BOND, SpringNetwork, pairs, spring

HELD = parse_restraint("distance:0-1:0.17:15000")
OF_EACH_KIND = ["distance:0-4:0.2:3000", "angle:2-0-5:100:300", "dihedral:3-1-0-4:60:200", "dihedral:0-1-2-3:-170:80"]


def some_geometries(n=5):
    return 0.2 * np.random.default_rng(0).normal(size=(n, 6, 3))


def spring_spec(restraints=()):
    """The spring of the samplers' tests as OpenMM computes it, in a real pool."""
    system, bond = openmm.System(), openmm.HarmonicBondForce()
    for mass in MASSES:
        system.addParticle(mass)
    bond.addBond(0, 1, R_BOND, K_BOND)
    system.addForce(bond)
    return PhysicsSpec("openmm", np.array([6, 1]), MASSES, {"system_xml": openmm.XmlSerializer.serialize(system)},
                       "spring", restraints=tuple(restraints))


def pair_of(conformers):
    return Molecule("pair", "C", np.array([6, 1]), MASSES, np.array([[0, 1]]), np.ones(1), conformers, np.zeros(1))


# energy and forces


@pytest.mark.parametrize("text", OF_EACH_KIND)
def test_forces_are_the_slope_of_the_energy(text):
    bias, x, h = Bias([parse_restraint(text)]), some_geometries(), 1e-6
    forces, slope = bias.energy_and_forces(x)[1], np.zeros_like(x)
    for place in np.ndindex(*x.shape[1:]):
        step = np.zeros(x.shape[1:])
        step[place] = h
        slope[(slice(None), *place)] = (bias.energy(x + step) - bias.energy(x - step)) / (2 * h)
    assert np.abs(forces + slope).max() < 1e-7 * np.abs(forces).max()


@pytest.mark.parametrize("text", OF_EACH_KIND)
def test_openmm_adds_the_same_potential(text):
    system, x = openmm.System(), some_geometries()
    for _ in range(6):
        system.addParticle(1.0)
    add_restraints(system, [parse_restraint(text)])
    context, (energy, forces) = make_context(system, "Reference"), Bias([parse_restraint(text)]).energy_and_forces(x)
    for one, e, f in zip(x, energy, forces):
        its_energy, its_forces = ask(context, one)
        assert its_energy == pytest.approx(e, rel=1e-6) and np.abs(its_forces - f).max() < 1e-5 * np.abs(f).max()


def test_k_is_the_curvature_and_the_centre_where_it_is_0():
    """Of a dihedral too, whose W is 2 k on the far side and the same across the border at 180 degrees."""
    def turned_to(phi):
        phi = np.radians(phi)
        return np.array([[[0.1, 0.1, 0], [0, 0, 0], [0.15, 0, 0], [0.2, 0.1 * np.cos(phi), 0.1 * np.sin(phi)]]])

    held = Bias([parse_restraint("dihedral:0-1-2-3:175:200")])
    assert dihedrals_deg(turned_to(-175.0), np.array([[0, 1, 2, 3]]))[0, 0] == pytest.approx(-175.0)
    assert held.energy(turned_to(175.0))[0] == pytest.approx(0.0, abs=1e-9)
    near = np.radians(10.0)
    assert held.energy(turned_to(-175.0))[0] == pytest.approx(held.energy(turned_to(165.0))[0])
    assert held.energy(turned_to(-175.0))[0] == pytest.approx(0.5 * 200.0 * near**2, rel=0.01)
    assert held.energy(turned_to(-5.0))[0] == pytest.approx(400.0)
    pair = np.array([[[0.0, 0, 0], [0.3, 0, 0]]])
    assert Bias([parse_restraint("distance:0-1:0.2:1000")]).energy(pair)[0] == pytest.approx(0.5 * 1000 * 0.1**2)
    right = np.array([[[0.1, 0, 0], [0, 0, 0], [0, 0.1, 0]]])
    assert Bias([parse_restraint("angle:0-1-2:60:100")]).energy(right)[0] == pytest.approx(50.0 * np.radians(30.0)**2)


def test_atoms_in_a_line_give_finite_forces():
    line = np.arange(5.0)[None, :, None] * np.array([0.1, 0.0, 0.0])
    for text in ("angle:0-1-2:180:100", "angle:0-1-2:100:100", "dihedral:0-1-2-3:60:100"):
        energy, forces = Bias([parse_restraint(text)]).energy_and_forces(line)
        assert np.isfinite(energy).all() and np.isfinite(forces).all()


def test_mirror_images_are_told_apart_by_dihedrals_alone():
    x = some_geometries()
    for text in [*OF_EACH_KIND, "dihedral:0-1-2-3:180:50", "dihedral:0-1-2-3:0:50"]:
        bias = Bias([parse_restraint(text)])
        same = np.allclose(bias.energy(x), bias.energy(-x))
        assert same == mirrored_alike(bias.restraints)


# where it is added


def test_the_truth_of_a_pool_holds_the_bias_and_labels_do_not():
    x = pairs(6, np.random.default_rng(0)) * 1.1
    with EvaluationPool(spring_spec()) as pool:
        bare = pool.evaluate(x)
    with EvaluationPool(spring_spec([HELD])) as pool:
        held = pool.evaluate(x)
    bias, forces = Bias([HELD]).energy_and_forces(x)
    assert np.abs(bias).min() > 1e-3
    assert np.array_equal(held.energy, bare.energy + bias) and np.array_equal(held.forces, bare.forces + forces)
    assert np.array_equal(held.bare[0], bare.energy) and np.array_equal(held.bare[1], bare.forces)
    assert np.array_equal(bare.bare[0], bare.energy)
    labels = Target(molecule=pair_of(x[:1]), spec=spring_spec([HELD]), method="spring", temperatures_K=(300.0,)).labels(
        x, held, 300.0)
    assert np.array_equal(labels.energies, bare.energy) and np.array_equal(labels.forces, bare.forces)


def test_a_call_that_failed_stays_one():
    with EvaluationPool(spring_spec([HELD])) as pool:
        truth = pool.evaluate(np.zeros((1, 2, 3)))
    assert truth.failed[0] and np.isnan(truth.energy[0])


def test_the_network_of_a_run_holds_the_bias():
    wrong, x = soft_spring(), pairs(5, np.random.default_rng(1)) * 1.2
    network = RestrainedNetwork(SpringNetwork(wrong), [HELD], MASSES)
    bias, forces = Bias([HELD]).energy_and_forces(x)
    energy, whole = network.energy_and_forces(x)
    assert np.array_equal(energy, wrong.batch(x)[0] + bias) and np.array_equal(whole, wrong.batch(x)[1] + forces)
    assert np.allclose(network.numpy(network.forces(network.native(x))), whole)
    assert recipe_of(pair_of(np.zeros((1, 2, 3))), "spring", (HELD,)).arguments["restraints"] == (HELD,)


def test_no_mirror_image_of_a_restrained_torsion(ethanol):
    network = ForceNetwork(lambda x: np.zeros_like(x))
    network.metadata = {}
    how = dict(walls=False, mirror=True, turns=0)
    assert means_of(ethanol, network, **how)["mirror"]
    for centre, mirror in ((60.0, False), (180.0, True)):
        held = RestrainedNetwork(network, [Restraint(kind="dihedral", atoms=(0, 1, 2, 8), centre=centre, k=10.0)],
                                 ethanol.masses)
        assert means_of(ethanol, held, **how)["mirror"] == mirror


# exact under a restraint, whatever the network


def held_energy(r):
    return 0.5 * K_BOND * (r - R_BOND) ** 2 + 0.5 * HELD.k * (r - HELD.centre) ** 2


@pytest.mark.parametrize("kind", ["nested", "single test"])
def test_sampling_is_exact_for_truth_and_restraint_with_a_wrong_network(kind):
    """Mean and mean square of the length against quadrature; without W, or with it on one side alone, they are off."""
    network, rng = RestrainedNetwork(SpringNetwork(soft_spring()), [HELD], MASSES), np.random.default_rng(3)
    scheme = (nested(network, dt_ps=1e-3) if kind == "nested" else
              Metropolis(Carrier(network), MASSES, 1e-3, 8, 300.0, length_law="uniform"))
    lengths = []
    with EvaluationPool(spring_spec([HELD])) as pool:
        state = start_state(pool, pairs(100, rng))
        for after, info in macro_steps(scheme, pool, state, rng, 80):
            if after.step > 20 * scheme.k_steps:
                lengths.append(np.linalg.norm(after.positions[:, 1] - after.positions[:, 0], axis=-1))
    for power in (1, 2):
        mean, error = mean_and_error(np.array(lengths) ** power)
        wanted = radial_mean(held_energy, 300.0, lambda r, p=power: r**p)
        free = radial_mean(lambda r: 0.5 * K_BOND * (r - R_BOND) ** 2, 300.0, lambda r, p=power: r**p)
        assert abs(mean - wanted) < 4 * error and abs(mean - free) > 20 * error


def test_a_kick_knows_nothing_of_the_bias_and_the_energy_is_kept():
    """With a perfect network the impulses of truth less network vanish, and k steps under U + W keep the energy."""
    network, rng = RestrainedNetwork(SpringNetwork(spring()), [HELD], MASSES), np.random.default_rng(4)
    scheme = Impulse(network, Carrier(network), MASSES, 5e-4, 4)
    with EvaluationPool(spring_spec([HELD])) as pool:
        start = start_state(pool, pairs(4, rng), 0.5 * rng.normal(size=(4, 2, 3)))
        total = [s.energy + kinetic_energy(s.velocities, MASSES) for s, _ in macro_steps(scheme, pool, start, rng, 200)]
    assert np.abs(np.array(total) - total[0]).max() < 0.05 * np.ptp(held_energy(np.array([0.12, 0.17])))


def test_a_jump_carries_the_bias_as_kicks_around_it():
    """The jump of a free particle, under W alone: velocity Verlet of W with the length of the jump."""
    def jump(x, v, f_true, span):
        tau = np.asarray(span)[:, None, None] * 1e-3
        assert np.abs(f_true).max() < 1e-9  # the jump is asked about the molecule alone
        return x + tau * v, v

    network = ForceNetwork(None, jump, spans=(4,))
    network.metadata = {"dt_fs": 1.0}
    network, rng = RestrainedNetwork(network, [HELD], MASSES), np.random.default_rng(5)

    class Free:
        def evaluate(self, x, rows=None):
            energy, forces = Bias([HELD]).energy_and_forces(x)
            return Truth(energy, forces, np.zeros(len(x), dtype=bool))

        submit, collect = evaluate, staticmethod(lambda truth: truth)

    limits = JumpLimits(1.0, np.array([10.0]), 1e9, 3)
    scheme, pool = Jump(network, MASSES, np.array([[0, 1]]), 1e-3, 4, limits), Free()
    x, v = pairs(3, rng), 0.5 * rng.normal(size=(3, 2, 3))
    (after, _), *_ = macro_steps(scheme, pool, start_state(pool, x, v), rng, 1)
    force = Bias([HELD]).energy_and_forces(x)[1]
    half = v + 0.002 * force / MASSES[:, None]
    end = x + 0.004 * half
    assert np.allclose(after.positions, end)
    assert np.allclose(after.velocities, half + 0.002 * Bias([HELD]).energy_and_forces(end)[1] / MASSES[:, None])


# what is stored, and how it is read


def held_run(bias_of, n=20000, seed=0):
    """A trajectory of pairs whose length follows the spring and W, as a file would hold it."""
    rng = np.random.default_rng(seed)
    r = np.linspace(0.05, 0.4, 20001)
    cumulative = np.cumsum(r**2 * np.exp(-held_energy(r) / kT(300.0)))
    x = np.zeros((n, 2, 3))
    x[:, 1, 0] = np.interp(rng.random(n) * cumulative[-1], cumulative, r)
    arrays = complete_trajectory({
        "pos": x, "vel": np.zeros_like(x), **dict.fromkeys(("Ekin", "Epot", "Etot", "time_ps"), np.zeros(n)),
        "step": np.arange(n) // 10, "replica": np.arange(n) % 10, "segment": np.arange(n) % 10, "masses": MASSES,
        "masses_sampler": MASSES, "atom_types": np.array([6, 1]), "bonds": np.array([[0, 1]]),
        "bias": bias_of.energy(x)})
    segments = [{"replica": i, "role": "train", "ensemble": "NVT", "temperature_K": 300.0, "n_dof": 3}
                for i in range(10)]
    return Trajectory(**arrays, metadata={"segments": segments, "molecule": "pair", "method": "spring",
                                          "restraints": [HELD.model_dump(mode="json")]})


def test_averages_of_a_restrained_run_are_of_the_ensemble_without():
    run = held_run(Bias([HELD]))
    frames = run.frames_of("train")
    r = run.pos[:, 1, 0]
    weights = run.weights_of(frames)
    free = radial_mean(lambda r: 0.5 * K_BOND * (r - R_BOND) ** 2, 300.0)
    assert (weights * r).mean() == pytest.approx(free, abs=0.0005)
    assert abs(r.mean() - free) > 0.005 and run.is_weighted
    with pytest.raises(UserError, match="restraints"):
        run.check_alike("pdb")
    assert r[run.drawn(frames, 4000)].mean() == pytest.approx(free, abs=0.001)


def test_runs_under_different_restraints_are_not_joined_as_chains():
    one = held_run(Bias([HELD]), 100)
    assert len(join_trajectories([one, one]).bias) == 200
    other = replace(one, metadata={**one.metadata, "restraints": None}, bias=np.zeros(0))
    with pytest.raises(UserError, match="different restraints"):
        join_trajectories([one, other])


@pytest.fixture(scope="module")
def butane():
    return molecule_from_smiles("CCCC", "butane", seed=0)


def test_starts_are_led_to_the_restraint(butane):
    held = [parse_restraint("dihedral:0-1-2-3:100:200"), parse_restraint("distance:0-3:0.33:5000")]
    led = led_to(butane[0], held)
    assert len(led.conformers) == len(butane[0].conformers)
    assert np.abs(values_of("dihedral", (0, 1, 2, 3), led.conformers) - 100.0).max() < 3.0
    assert np.abs(values_of("distance", (0, 3), led.conformers) - 0.33).max() < 0.01
    assert led_to(butane[0], ()) is butane[0]
    assert (np.diff(led.conformer_energies) >= 0).all()
    assert led.conformer_energies[0] > butane[0].conformer_energies[0] + 5.0


def plain_file(tmp_path, butane, platform):
    from kstep.stages.physics import TruePhysics
    from kstep.stages.plain_md import PlainMDSettings, run_one

    config = load_config(MDConfig, None, {
        "restraints": [{"kind": "dihedral", "atoms": [0, 1, 2, 3], "centre": 60, "k": 200}], "length_ps": 0.1,
        "equilibration_ps": 0.05, "replicas": 1, "redraw_interval_ps": 0.05, "platform": platform, "dt_fs": 0.5})
    physics = TruePhysics(butane[0], config, system_xml=butane[1])
    run_one(PlainMDSettings(((physics, tmp_path / "plain.npz"),)))
    return physics, load_trajectory(tmp_path / "plain.npz")


def test_plain_md_of_openmm_is_restrained_and_stores_the_bare_energy(tmp_path, butane):
    physics, run = plain_file(tmp_path, butane, "Reference")
    assert run.metadata["restraints"] == [{"kind": "dihedral", "atoms": [0, 1, 2, 3], "centre": 60.0, "k": 200.0}]
    assert run.is_restrained and any("restraints held" in caveat for caveat in run.metadata["caveats"])
    backend, bias = physics.spec().build(), Bias(run.restraints)
    for frame in (0, 57, len(run.pos) - 1):
        energy, forces = backend.energy_and_forces(run.pos[frame])
        assert run.Epot[frame] == pytest.approx(energy, abs=1e-5)
        assert np.abs(run.forces[frame] - forces).max() < 1e-3
        assert run.bias[frame] == pytest.approx(bias.energy(run.pos[frame: frame + 1])[0], abs=1e-9)
    assert np.allclose(run.Etot, run.Ekin + run.Epot + run.bias)
    nve = np.flatnonzero(run.segment == run.segment[-1])
    assert np.ptp(run.Etot[nve]) < 0.2 * np.ptp(run.Epot[nve])  # the bias moves the atoms, too
    assert np.ptp(run.bias[nve]) > 2.0 * np.ptp(run.Etot[nve])


def test_windows_of_restrained_md_are_refused(tmp_path, butane):
    from kstep.training.windows import check_usable

    _, run = plain_file(tmp_path, butane, "Reference")
    with pytest.raises(UserError, match="held by restraints"):
        check_usable(run, "plain.npz")


def test_a_hybrid_run_stores_what_it_is_and_goes_on_with_the_same_restraints_alone(tmp_path, butane):
    from kstep.stages.physics import TruePhysics
    from kstep.stages.sampling import SamplingSettings, sample

    physics = TruePhysics(butane[0], load_config(MDConfig, None, {}), system_xml=butane[1])
    hybrid = {"scheme": "plain", "steps": 10, "burn_in_steps": 5, "replicas": 2, "checkpoint_interval": 5}
    held = {"restraints": [{"kind": "angle", "atoms": [0, 1, 2], "centre": 120, "k": 500}]}

    def settings(more, **others):
        return SamplingSettings(physics=physics, hybrid=load_config(HybridConfig, None, {**hybrid, **more}),
                                out=tmp_path / "run.npz", n_workers=1, **others)

    sample(settings(held))
    run, backend = load_trajectory(tmp_path / "run.npz"), physics.spec().build()
    assert run.metadata["config"]["restraints"] == [{"kind": "angle", "atoms": [0, 1, 2], "centre": 120.0, "k": 500.0}]
    assert run.Epot[-1] == pytest.approx(backend.energy(run.pos[-1]), abs=1e-5)
    assert run.bias[-1] == pytest.approx(Bias(run.restraints).energy(run.pos[-1:])[0])
    assert run.metadata["method"] == physics.method  # labels and networks are of the bare surface
    with pytest.raises(UserError, match="hybrid"):
        sample(settings({"restraints": [{**held["restraints"][0], "k": 400}]}, resume=True))


def test_a_hybrid_takes_the_restraints_of_its_physics_unless_it_says_none(butane):
    from kstep.runs.settings import settle_settings

    physics = load_config(MDConfig, None, {"restraints": [HELD.model_dump()]})
    open_, none = (load_config(HybridConfig, None, {"scheme": "plain", "steps": 1, **more})
                   for more in ({}, {"restraints": []}))
    assert settle_settings(open_, None, physics).restraints == (HELD,)
    assert settle_settings(none, None, physics).restraints == ()


# bad input


@pytest.mark.parametrize(("text", "words"), [
    ("dihedral:0-1-2-3:60", "must read kind:atoms:centre:k"),
    ("dihedrel:0-1-2-3:60:200", "did you mean 'dihedral'"),
    ("dihedral:0-1-2:60:200", "4 different atoms"),
    ("angle:0-1:60:200", "an angle is one of 3 different atoms"),
    ("dihedral:0-1-2-2:60:200", "4 different atoms"),
    ("distance:a-b:0.3:200", "no list of atoms"),
    ("distance:0-1:x:200", "must be numbers"),
    ("distance:0-1:0.3:-5", "greater than 0"),
    ("distance:0-1:0.3:nan", "k"),
    ("distance:0-1:-0.3:5", "between 0 and 1000 nm"),
    ("angle:0-1-2:200:5", "between 0 and 180 deg"),
])
def test_a_restraint_that_is_none_is_one_sentence(text, words, capsys):
    from kstep.cli import main

    for command in (["sample", "CCCC", "--out", "x.npz"], ["baseline", "CCCC"]):
        with pytest.raises(SystemExit) as end:
            main([*command, "--restrain", text])
        said = capsys.readouterr().err
        assert end.value.code == 2 and words in said and said.count("\n") == 1


@pytest.mark.parametrize(("restraints", "words"), [
    ([{"kind": "dihedral", "atoms": [0, 1, 2], "centre": 60, "k": 200}], "4 different atoms"),
    ([{"kind": "dihedral", "atoms": [0, 1, 2, 3], "center": 60, "k": 200}], "did you mean 'centre'"),
    ([{"kind": "dihedral", "atoms": [0, 1, 2, -3], "centre": 60, "k": 200}], "atoms"),
    ("dihedral", "restraints"),
])
def test_a_config_with_a_wrong_restraint_is_one_sentence(restraints, words):
    for kind in (HybridConfig, MDConfig):
        with pytest.raises(UserError, match=words):
            load_config(kind, None, {"restraints": restraints})


def test_an_atom_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="names atom 7, but the molecule has atoms 0 to 1"):
        spring_spec([parse_restraint("distance:0-7:0.2:100")])


def test_a_file_with_restraints_that_are_none_is_refused(tmp_path):
    from kstep.npz import read_npz, write_npz
    from kstep.schemas import save_trajectory

    save_trajectory(tmp_path / "good.npz", {k: v for k, v in vars(held_run(Bias([HELD]), 40)).items()
                                            if k != "metadata"}, held_run(Bias([HELD]), 40).metadata)
    arrays = read_npz(tmp_path / "good.npz")
    metadata = json.loads(str(arrays["metadata"]))
    held = metadata["restraints"][0]
    for wrong, bias, words in (([{"kind": "x"}], arrays["bias"], "no list of"), ([held], np.zeros(0), "have no 'bias'"),
                               ([{**held, "atoms": [0, 9]}], arrays["bias"], "names atom 9")):
        text = json.dumps({**metadata, "restraints": wrong})
        write_npz(tmp_path / "bad.npz", {**arrays, "bias": bias, "metadata": text})
        with pytest.raises(UserError, match=words):
            load_trajectory(tmp_path / "bad.npz")
