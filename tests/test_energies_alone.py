"""Truths without forces: who asks them for none, and who refuses, in one sentence with the way out."""

from dataclasses import replace

import numpy as np
import pytest

from kstep.errors import PhysicsError, UserError
from kstep.forces import calculator_spec, check_spec, openmm as mm_backend, physics_spec
from kstep.forces.ase import allow_calculators
from kstep.forces.base import check_start
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig, OpenMMPhysics
from kstep.forces.pyscf import PyscfConfig
from kstep.forces.tblite import QMConfig
from kstep.molecules.prepare import prepare_smiles, system_xml_of
from kstep.runs import run_hybrid as run_module, run_network
from kstep.runs.settings import HybridRun, prepare_run
from kstep.runs.starts import settle_starts
from kstep.schemas import load_trajectory
from kstep.schemes import SAMPLERS, SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages.physics import TruePhysics
from kstep.stages.plain_md import PlainMDSettings, run_one
from kstep.stages.relaxation import relax_conformers
from kstep.stages.sampling import SamplingSettings, learn_alone, with_starts
from kstep.training.windows import check_usable
from test_impulse_checked import Springs
from wrong_calculators import EnergyAlone

CCSDT = PyscfConfig(functional="HF", correlation="ccsd(t)", basis="STO-3G")


@pytest.fixture(scope="module")
def prepared():
    return prepare_smiles("O", "water")


@pytest.fixture
def mute(prepared, monkeypatch):
    """The spec of water on an MMFF94 that has no forces, and whoever asks for them fails."""
    monkeypatch.setattr(mm_backend, "BACKEND", replace(mm_backend.BACKEND, has_forces=lambda settings: False))
    monkeypatch.setattr(OpenMMPhysics, "has_forces", False)
    return physics_spec(prepared.molecule, MDConfig(), system_xml=system_xml_of(prepared))


@pytest.mark.parametrize("config, expected", [
    (PyscfConfig(), True), (PyscfConfig(functional="HF"), True), (CCSDT, False),
    (PyscfConfig(functional="HF", correlation="ccsd"), False), (PyscfConfig(functional="HF", correlation="mp2"), True),
    (PyscfConfig(functional="HF", correlation="mp2", density_fit=True), False),
    (PyscfConfig(functional="b2plyp"), False)])
def test_a_spec_knows_without_computing_what_its_backend_then_keeps(water, config, expected):
    spec = physics_spec(water, config)
    assert spec.has_forces is expected and spec.build().has_forces is expected


def test_a_question_about_forces_is_refused_before_it_is_a_true_call(mute):
    physics = mute.build()
    with pytest.raises(UserError, match="this true potential has no forces"):
        physics.energy_and_forces(np.zeros((3, 3)))
    assert physics.true_calls == 0


def test_a_pool_asks_for_what_there_is_and_says_nan_of_the_rest(mute, prepared):
    x = np.repeat(prepared.molecule.conformers[:1], 2, axis=0)
    with EvaluationPool(mute, 1) as pool:
        truth = pool.evaluate(x)
        assert np.isfinite(truth.energy).all() and np.isnan(truth.forces).all() and not truth.failed.any()
        with pytest.raises(UserError, match="mmff94 has no forces to ask for"):
            pool.submit(x, want_forces=True)
        assert pool.true_calls == 2
    check_start(mute.build(), x)  # by energies


def test_a_calculator_without_forces_is_a_truth_of_energies(water):
    spec = calculator_spec(EnergyAlone, water)
    assert not spec.has_forces
    check_spec(spec, water)
    assert spec.build().energy(water.conformers[0]) > 0.0
    allow_calculators(["wrong_calculators:EnergyAlone"])
    named = calculator_spec("wrong_calculators:EnergyAlone", water)
    with pytest.raises(UserError, match="EnergyAlone has no forces; .* set forces: false"):
        named.build()
    assert replace(named, settings=named.settings | {"forces": False}).build().energy(water.conformers[0]) > 0.0


# who needs none


def run_of(monkeypatch, molecule, spec, path, *, resume=False, **settings):
    network = Springs(0.02, molecule.conformers[0])
    network.device, network.metadata = "cpu", {}
    monkeypatch.setattr(run_network, "load_network", lambda **_: network)
    hybrid = HybridConfig(**{**dict(k_steps=6, dt_fs=1.0, burn_in_steps=4, steps=12, replicas=4, temperature_K=300.0,
                                    inner="numpy"), **settings})
    return run_module.run_hybrid(HybridRun(molecule, spec, "MMFF94", hybrid, None, path, seed=3, resume=resume), {}, {})


@pytest.mark.parametrize("settings", [
    {"scheme": "metropolis", "length_law": "fixed"}, {"scheme": "nested", "moves": 2, "network_ladder_K": [300.0]},
    {"scheme": "nested", "moves": 2, "network_ladder_K": [300.0], "tune": True, "dt_fs": 1.0}], ids=str)
def test_a_sampler_asks_for_no_forces_and_samples_what_it_did_with_them(settings, prepared, mute, tmp_path,
                                                                        monkeypatch):
    run_of(monkeypatch, prepared.molecule, mute, tmp_path / "alone.npz", **settings)
    alone = load_trajectory(tmp_path / "alone.npz")
    assert len(alone.forces) == 0 and len(alone.pos) and np.isfinite(alone.Epot).all()
    with pytest.raises(UserError, match="stores no forces"):
        check_usable(alone, "alone.npz")
    if settings.get("tune"):  # by the clock
        return
    monkeypatch.undo()
    run_of(monkeypatch, prepared.molecule, mute, tmp_path / "with.npz", store_forces=True, **settings)
    with_them = load_trajectory(tmp_path / "with.npz")
    assert with_them.forces.shape == with_them.pos.shape
    assert np.array_equal(alone.pos, with_them.pos) and np.array_equal(alone.Epot, with_them.Epot)


# who refuses


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_that_settles_on_forces_refuses_and_names_those_that_do_not(name, mute, prepared, tmp_path,
                                                                             monkeypatch):
    hybrid = HybridConfig(scheme=name, steps=5)
    network = {"config": {"heads": {"energy": True, "jump": True}}, "k_steps": 4, "dt_fs": 0.5, "spans": [4],
               "elements": [1, 8], "molecule": None, "method": "MMFF94"}
    monkeypatch.setattr("kstep.models.checkpoint.load", lambda path: network)

    def prepare(hybrid):
        return prepare_run(prepared.molecule, lambda settled: mute, "MMFF94", hybrid, MDConfig(), n_workers=1,
                           out=tmp_path / "run.npz", checkpoint="network.pt")

    if SCHEMES[name] in SAMPLERS:
        assert prepare(hybrid).keeps_forces is False
        with pytest.raises(UserError, match="mmff94 has no forces, and store_forces needs them; leave it out"):
            prepare(hybrid.model_copy(update={"store_forces": True}))
    else:
        with pytest.raises(UserError, match=f"mmff94 has no forces, and scheme {name} needs them; .*--scheme nested or "
                                            "--scheme metropolis"):
            prepare(hybrid)


def test_whoever_needs_forces_refuses_in_one_sentence(water, tmp_path):
    physics = TruePhysics(water, CCSDT)
    with pytest.raises(UserError, match=r"CCSD\(T\)/STO-3G has no forces, and learning a network of it needs them; "
                                        "learn with --via"):
        learn_alone(SamplingSettings(physics=physics, hybrid=HybridConfig(), out=tmp_path / "run.npz"))
    with pytest.raises(PhysicsError, match="water: .* and plain MD needs them"):
        run_one(PlainMDSettings(((physics, tmp_path / "md.npz"),)))
    with pytest.raises(UserError, match="and relaxing a molecule on it needs them"):
        settle_starts(water, physics.spec(), wanted=1)
    with pytest.raises(UserError, match="and relaxing on it needs them"):
        relax_conformers(type("Found", (), {"notes": ()}), [], physics)


def test_starts_are_judged_as_they_are_and_the_run_says_so(water, tmp_path, caplog):
    physics = TruePhysics(replace(water, force_field="mmff94"), CCSDT)
    settings = SamplingSettings(physics=physics, hybrid=HybridConfig(), out=tmp_path / "run.npz")
    settings, starts = with_starts(settings, must_hold=True)
    assert np.array_equal(settings.physics.molecule.conformers, water.conformers)
    assert starts.caveats and "has no forces to relax the starts of water by: they are minima of" in starts.caveats[0]
    assert starts.caveats[0] in caplog.text


def test_starts_are_relaxed_on_a_cheaper_method_where_one_is_given(water, tmp_path):
    settings = SamplingSettings(physics=TruePhysics(water, CCSDT), hybrid=HybridConfig(), out=tmp_path / "run.npz",
                                delay_with=TruePhysics(water, QMConfig()))
    assert replace(settings, physics=settings.delay_with).relax_on is None  # it has forces of its own
    assert replace(settings, delay_with=settings.physics).relax_on is None
    settings, starts = with_starts(settings, must_hold=True, relax_on=settings.relax_on)
    assert starts.record["relaxed_on"] == "GFN2-xTB" and not starts.caveats
    assert not np.array_equal(settings.physics.molecule.conformers, water.conformers)
