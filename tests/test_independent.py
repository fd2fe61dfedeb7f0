"""What holds a run's populations against other means does find them, and finds what is wrong with them."""

import json
from dataclasses import replace

import numpy as np
import pytest

import independent
import synthetic
from conftest import molecule_from_smiles
from kstep.analysis.measure.populations import populations
from kstep.forces import physics_spec
from kstep.forces.tblite import QMConfig
from test_populations import made_up


@pytest.fixture(scope="module")
def propanol():
    return molecule_from_smiles("CCCO", "propanol", 1)


def saved(path, run, **facts):
    told = {"populations": populations([run]).as_dict(), "method": "GFN2-xTB", "smiles": "CCCO", **facts}
    synthetic.save(path, replace(run, metadata={**run.metadata, **told}))
    return path


def test_wells_and_shares_are_those_of_the_file(propanol, tmp_path):
    run = made_up(propanol, 0, chains=8, frames=300, stay=0.3)
    path = saved(tmp_path / "run.npz", run)
    found = independent.judged([path], 0.0, 0)
    of_run = found["runs"]["run"]
    assert sum(share > 0.005 for share in of_run["share"]) == len(populations([run]).conformers)
    assert of_run["largest_difference"] < 0.005 and of_run["z_with_the_file"] < 0.5
    assert "0.00" in independent.as_text(found)
    table = json.loads(json.dumps(populations([run]).as_dict()))
    table["conformers"][0]["population"] -= 0.1
    with_fault = independent.judged([saved(tmp_path / "wrong.npz", run, populations=table)], 0.0, 0)
    assert with_fault["runs"]["wrong"]["z_with_the_file"] > 2.0


def test_valleys_lie_between_wells_alone():
    rng = np.random.default_rng(0)
    angle = np.concatenate([rng.normal(170, 15, 3000), rng.normal(65, 12, 1000), rng.normal(-65, 12, 1000)])
    angle = (angle + 180.0) % 360.0 - 180.0
    found = independent.valleys(angle, np.ones(len(angle)), both_hands=True)
    assert len(found) == 3 and np.sort(np.abs(found)) == pytest.approx([0.0, 112.0, 112.0], abs=18.0)
    states = independent.states_of(angle[:, None], [found], True)
    assert np.mean(states == "+180") == pytest.approx(0.6, abs=0.01) and len(set(states)) == 2
    assert not len(independent.valleys(rng.normal(170, 30, 4000), np.ones(4000), both_hands=False))
    amide = np.concatenate([rng.normal(0, 8, 900), rng.normal(170, 8, 100)])  # with nothing in between
    for angle in (amide, -amide, amide[:900]):
        found = independent.valleys(angle, np.ones(len(angle)), both_hands=False)
        assert len(found) == (2 if len(angle) == 1000 else 0)
        assert not len(found) or len(set(independent.states_of(angle[:, None], [found], False))) == 2


def ensemble(rng, n, centre, offset, depth):
    """States "a" and "b" with U = (q - centre_s)^2 / 2 + offset_s, sampled exactly; q and state of n frames."""
    p = np.exp(-np.asarray(offset) + np.asarray(depth))
    state = rng.choice(2, n, p=p / p.sum())
    return state, np.asarray(centre)[state] + rng.standard_normal(n)


def test_shares_of_another_method_follow_from_its_energies():
    """Two Gaussian wells, moved and shifted from the one method to the other: all is known."""
    rng, names = np.random.default_rng(1), ["a", "b"]
    gas, water = ((0.0, 0.0), (0.0, 0.5)), ((0.8, -0.3), (1.2, 0.0))

    def energy(method, state, q):
        centre, offset = (np.asarray(part) for part in method)
        return 0.5 * (q - centre[state]) ** 2 + offset[state]

    runs = [ensemble(rng, 4000, *method, (0.0, 0.0)) for method in (gas, water)]
    work = [energy(water, *run) - energy(gas, *run) for run in runs]
    state = [np.array(names)[run[0]] for run in runs]
    p = [np.exp(-np.array(method[1])) / np.exp(-np.array(method[1])).sum() for method in (gas, water)]
    said = independent.predicted(p[0], state[0], work[0], state[1], work[1], names)
    assert said == pytest.approx(p[1], abs=0.012) and abs(p[1] - p[0]).max() > 0.3
    back = independent.predicted(p[1], state[1], -work[1], state[0], -work[0], names)
    assert back == pytest.approx(p[0], abs=0.012)


@pytest.mark.parametrize("solvent", [None, "water"])
def test_energies_are_those_of_the_method(ethanol, tmp_path, solvent):
    config = QMConfig(accuracy=0.01, solvent=solvent)
    physics = physics_spec(ethanol, config).build()
    x = np.stack([ethanol.conformers[0], ethanol.conformers[0] * 1.01])
    run = independent.Run(x, np.zeros(2), np.zeros(2), np.ones(2), ethanol.numbers,
                          {"method": config.surface, "temperature_K": 300.0})
    found = independent.energies_kT(run, x, run)
    assert np.diff(found)[0] == pytest.approx(np.diff([physics.energy(y) for y in x])[0] / 2.4943388, rel=1e-3)


def test_dynamics_tells_frames_that_are_too_cold(ethanol):
    """From a minimum the energy rises to 300 K; classical, about half of it within some hundredths of a ps."""
    physics = physics_spec(ethanol, QMConfig()).build()
    x = np.repeat(ethanol.conformers[:1], 3, axis=0)
    run = independent.Run(x, np.full(3, physics.energy(x[0])), np.zeros(3), np.ones(3), ethanol.numbers,
                          {"method": "GFN2-xTB", "temperature_K": 300.0})
    found = independent.by_dynamics(run, ["C0-C1-O2-H8"], [np.array([-120.0, 0.0, 120.0])], True, ["+180", "+60"], 0.03,
                                    3)
    assert 2.0 < found["energy_rise_kJ"] < 40.0 and len(found["change"]) == 2
