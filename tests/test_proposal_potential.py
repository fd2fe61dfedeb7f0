"""A cheap method proposes in the place of a network: exact however wrong it is, its calls on a count of their own."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from conftest import BatchPool, BondPotential, start_state
from kstep.analysis.show.report.sections import cost
from kstep.errors import UserError
from kstep.forces import PhysicsSpec, physics_spec
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig
from kstep.forces.tblite import QMConfig
from kstep.molecules.prepare import prepare_smiles, system_xml_of
from kstep.restraints import Restraint
from kstep.runs import run_hybrid as run_module
from kstep.runs.counters import Tally
from kstep.runs.proposal_potential import ProposalPotential, load_potential
from kstep.runs.settings import HybridRun, check_proposal, prepare_run, without_network
from kstep.schemas import load_trajectory
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages.physics import TruePhysics
from kstep.stages.sampling import SamplingSettings, sample as sample_molecule
from test_delayed import CheaperPool, middling_spring
from test_nested import lengths, mean_and_error, nested, radial_mean, soft_spring, steps_of
from test_sampler import pairs, spring


@dataclass
class Recipe:
    """As much of a PhysicsSpec as a proposal asks for."""

    physics: BondPotential
    method: str = "soft"

    def build(self):
        return self.physics


def proposing(potential, **more):
    return nested(ProposalPotential(Recipe(potential), pairs(4, np.random.default_rng(0))), rungs_K=(300.0,), **more)


@pytest.mark.parametrize("delays", [False, True])
def test_the_truth_is_sampled_by_the_moves_of_a_wrong_method(delays):
    """Radial mean of the truth, by quadrature; moves follow the method's own force, or few would be accepted."""
    truth, rng = spring(), np.random.default_rng(2)
    scheme = proposing(soft_spring(), moves=1)
    if delays:
        scheme = scheme.delayed_by(CheaperPool(middling_spring()), 2)
    state, tally, seen = start_state(BatchPool(truth), pairs(1500, rng)), Tally(scheme), []
    for step, (after, info) in enumerate(steps_of(scheme, BatchPool(truth), state, 50, seed=3)):
        if step >= 12:
            tally.add(after, info)
            seen.append(lengths(after.positions))
    mean, error = mean_and_error(np.array(seen))
    assert error < 2e-4 and mean == pytest.approx(radial_mean(truth.u, 300.0), abs=4 * error)
    assert abs(radial_mean(soft_spring().u, 300.0) - mean) > 10 * error
    summary = tally.summary()
    assert summary["figures"]["inner_acceptance"][0] > 0.95 and 0.2 < summary["acceptance"] < 0.98
    assert summary["mean_exp_minus_beta_dH"] == pytest.approx(1.0, abs=5 * summary["mean_exp_minus_beta_dH_error"])


def test_what_it_has_no_number_for_is_none_and_counts(water):
    """And no floor for turns comes of it, where no start has one."""
    spec = physics_spec(water, QMConfig())
    x = np.repeat(water.conformers[:1], 3, axis=0)
    x[1, 2] = x[1, 1]
    potential = ProposalPotential(spec, x[:1])
    energy, forces = potential.energy_and_forces(x)
    assert np.isnan(energy).tolist() == np.isnan(forces[:, 0, 0]).tolist() == [False, True, False]
    assert potential.true_calls == 3 and potential.metadata["lowest_energy_kJ_per_mol"] == energy[0]
    assert np.array_equal(potential.forces(x[:1]), forces[:1])
    with pytest.raises(UserError, match="no energy for any start"):
        assert ProposalPotential(spec, x[1:2]).metadata


def test_it_moves_under_the_restraints_of_the_truth(water):
    spec = replace(physics_spec(water, QMConfig()), restraints=(
        Restraint(kind="distance", atoms=[0, 1], centre=0.12, k=1e5),))
    x = water.conformers[:1]
    potential = load_potential(spec, x, checkpoint=None, device="cpu", delta_scale=1.0, rows=1)
    with EvaluationPool(spec, 1) as pool:
        truth = pool.evaluate(x)
    energy, forces = potential.energy_and_forces(x)
    assert energy == pytest.approx(truth.energy, abs=1e-6) and np.allclose(potential.forces(x), truth.forces, atol=1e-3)
    assert energy[0] > truth.bare[0][0] + 1.0 and np.allclose(forces, truth.forces, atol=1e-3)
    assert potential.metadata["method"] == "GFN2-xTB" and potential.true_calls == 3


# whole runs


@pytest.fixture(scope="module")
def prepared():
    return prepare_smiles("O", "water")


@pytest.fixture
def sample(prepared, monkeypatch):
    """sample(path, **settings): the metadata of a run of water on MMFF94, whose moves GFN1-xTB makes."""
    spec = physics_spec(prepared.molecule, MDConfig(), system_xml=system_xml_of(prepared))
    gfn1 = physics_spec(prepared.molecule, QMConfig(method="GFN1-xTB"))

    def run(path, *, propose=gfn1, resume=False, n_workers=1, stop_after=None, **settings):
        asked, calls = ProposalPotential.forces, []

        def counted(self, x):
            calls.append(len(x))
            if stop_after is not None and len(calls) > stop_after:
                raise KeyboardInterrupt
            return asked(self, x)

        monkeypatch.setattr(ProposalPotential, "forces", counted)
        hybrid = HybridConfig(**{**dict(
            scheme="nested", moves=2, k_steps=8, dt_fs=1.0, burn_in_steps=4, steps=8, replicas=3, temperature_K=300.0,
            network_ladder_K=[300.0, 400.0], checkpoint_interval=4, tune=False), **settings})
        job = HybridRun(prepared.molecule, spec, "mmff94", hybrid, None, path, seed=3, resume=resume, propose=propose,
                        n_workers=n_workers)
        try:
            return run_module.run_hybrid(job, {}, {})
        finally:
            monkeypatch.setattr(ProposalPotential, "forces", asked)

    return run


def test_a_whole_run_counts_its_calls_by_method_and_goes_on_bit_equal(sample, prepared, tmp_path):
    metadata = sample(tmp_path / "whole.npz")
    calls = metadata["true_calls_by_method"]
    assert metadata["proposed_with"] == "GFN1-xTB" and set(calls) == {"mmff94", "GFN1-xTB"}
    assert calls["mmff94"] == metadata["true_calls"] <= 3 * 13
    whole = load_trajectory(tmp_path / "whole.npz")
    assert ("calls of cheaper methods", f"{calls['GFN1-xTB']:,} of GFN1-xTB") in cost(whole, [])
    # a force at every step and at the start of every move, an energy after it, of 6 rows; 4 steps a move on average
    moves = 12 * 2 * 6
    assert 3.5 * moves < calls["GFN1-xTB"] < 8.5 * moves
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut.npz", stop_after=80)
    again = sample(tmp_path / "cut.npz", resume=True)
    other = load_trajectory(tmp_path / "cut.npz")
    for key in ("pos", "Epot", "accepted", "attempts", "delta_H"):
        assert np.array_equal(getattr(whole, key), getattr(other, key), equal_nan=True), key
    assert again["tally"] == metadata["tally"]
    assert calls["GFN1-xTB"] <= again["true_calls_by_method"]["GFN1-xTB"] < calls["GFN1-xTB"] + 200
    gfn2 = physics_spec(prepared.molecule, QMConfig())
    with pytest.raises(UserError, match="physics.propose"):  # another method is another chain
        sample(tmp_path / "cut.npz", propose=gfn2)


def test_calls_of_other_processes_are_on_the_count(sample, tmp_path):
    one, two = (sample(tmp_path / f"{n}.npz", n_workers=n, steps=2, burn_in_steps=0) for n in (1, 2))
    assert two["true_calls_by_method"]["GFN1-xTB"] >= one["true_calls_by_method"]["GFN1-xTB"] > 100
    a, b = (load_trajectory(tmp_path / f"{n}.npz") for n in (1, 2))
    assert np.allclose(a.pos, b.pos, atol=1e-6)


@pytest.mark.parametrize("scheme", [name for name, kind in SCHEMES.items()
                                    if kind.traits.head == "energy" and not kind.traits.explores])
def test_schemes_that_move_by_a_network_move_by_it(sample, tmp_path, scheme):
    """Two steps of 4 timesteps; the schemes of dynamics keep their own thermostat."""
    metadata = sample(tmp_path / "run.npz", scheme=scheme, moves=None, network_ladder_K=None, k_steps=4, dt_fs=0.5,
                      steps=2, burn_in_steps=0, tune=None, checkpoint_interval=2)
    calls = metadata["true_calls_by_method"]
    assert metadata["status"] == "finished" and metadata["proposed_with"] == "GFN1-xTB"
    assert 6 * 3 <= calls["GFN1-xTB"] <= 2 * 3 * 12 and calls["mmff94"] == metadata["true_calls"] <= 9


# what does not fit


@pytest.mark.parametrize("hybrid, checkpoint, words", [
    ({}, "net.pt", "in the place of a network; leave --checkpoint out"),
    ({"scheme": "jump"}, None, "jump does not move by a potential; .* one of"),
    ({"scheme": "plain"}, None, "plain does not move by a potential"),
    ({"inner": "numpy"}, None, 'inner numpy is about a network.*leave it "auto"'),
    ({"delta_scale": 0.5}, None, "delta_scale 0.5 is about a network.*leave it 1.0"),
    ({"scheme": "checked", "past_tolerance": "learn"}, None, 'past_tolerance learn is about .*leave it "stop"')])
def test_what_only_a_network_can_do_is_refused(hybrid, checkpoint, words):
    with pytest.raises(UserError, match=words):
        without_network(HybridConfig(**hybrid), checkpoint)


def test_every_scheme_that_moves_by_a_potential_takes_it_and_tunes_only_where_asked(water, tmp_path):
    gfn1, gfn2 = (physics_spec(water, QMConfig(method=f"GFN{n}-xTB")) for n in (1, 2))
    for name, kind in SCHEMES.items():
        if kind.traits.head == "energy":
            run = prepare_run(water, lambda hybrid: gfn2, "GFN2-xTB", HybridConfig(scheme=name, steps=3), QMConfig(),
                              out=tmp_path / "x.npz", propose=gfn1)
            assert run.hybrid.tune in (None, False) and run.propose == gfn1 and run.hybrid.k_steps
    asked = without_network(HybridConfig(tune=True), None)
    assert asked.tune and without_network(HybridConfig(), None).tune is False


@pytest.mark.parametrize("own, delay, words", [
    ({"method": "dear"}, False, "--propose-with is dear, the truth itself"),
    ({"method": "rung"}, True, "--propose-with is rung, as --delay-with is"),
    ({"settings": {"charge": 1, "multiplicity": 2}}, False, "--propose-with has charge 1, and the truth 0")])
def test_a_method_that_does_not_fit_is_refused(water, own, delay, words):
    dear = PhysicsSpec("tblite", water.numbers, water.masses, {"charge": 0, "multiplicity": 1}, "dear")
    with pytest.raises(UserError, match=words):
        check_proposal(replace(dear, **{"method": "cheap", **own}), dear,
                       replace(dear, method="rung") if delay else None)


def test_a_method_without_forces_cannot_move_anything(water):
    dear = PhysicsSpec("pyscf", water.numbers, water.masses, {"correlation": "ccsd(t)"}, "dear")
    with pytest.raises(UserError, match="has no forces, and what proposes moves by them"):
        check_proposal(replace(dear, method="CCSD(T)"), dear, None)


def test_nothing_is_learned_beside_it_and_starts_are_relaxed_on_it(water, tmp_path):
    physics = TruePhysics(water, QMConfig())
    settings = SamplingSettings(physics=physics, hybrid=HybridConfig(), out=tmp_path / "x.npz",
                                propose_with=physics.on(QMConfig(method="GFN1-xTB")))
    assert settings.relax_on.method == "GFN1-xTB"
    with pytest.raises(UserError, match="so that nothing is learned; leave --learn, --via and --teacher out"):
        sample_molecule(replace(settings, learn=True))
