"""Torsions turned over on the network: geometry, exactness behind a barrier that no dynamics crosses, and holes."""

from types import SimpleNamespace

import numpy as np
import pytest

from conftest import BatchPool, ForceNetwork, start_state
from kstep.dihedrals import dihedrals_deg, far_side, turned, wrap_deg
from kstep.runs.loop import run
from kstep.runs.network_dynamics import Carrier
from kstep.schemes import Nested
from kstep.schemes.nested import FLOOR_KT, means_of
from kstep.schemes.network_ladder import NetworkLadder, Turns
from kstep.units import kT

MASSES = np.full(4, 12.0)
BONDS = np.array([[0, 1], [1, 2], [2, 3]])
SPRINGS = ((0, 1, 0.15), (1, 2, 0.15), (2, 3, 0.15), (0, 2, 0.245), (1, 3, 0.245))
KT = kT(300.0)
CHAIN = {"bonds": BONDS, "region": None, "rotatable_torsions": lambda: np.array([[0, 1, 2, 3]])}


class Torsion:
    """Springs between first and second neighbours, and of(phi), kJ/mol, whose torsion has a density exp(-of/kT).

    of: gives its slope, too.  Slopes of phi: Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996).
    """

    def __init__(self, of):
        self.of = of

    def batch(self, x):
        y = np.moveaxis(x, 0, -1).copy()
        energy, forces = np.zeros(len(x)), np.zeros_like(y)
        for i, j, rest in SPRINGS:
            d = y[i] - y[j]
            r = np.sqrt((d * d).sum(0))
            energy += 2e4 * (r - rest) ** 2
            pull = 4e4 * (rest / r - 1.0) * d
            forces[i] += pull
            forces[j] -= pull
        b0, b1, b2 = y[1:] - y[:3]
        n1, n2, length = cross(b0, b1), cross(b1, b2), np.sqrt((b1 * b1).sum(0))
        u, slope = self.of(np.arctan2((b0 * n2).sum(0) * length, (n1 * n2).sum(0)))
        first, last = -length / (n1 * n1).sum(0) * n1, length / (n2 * n2).sum(0) * n2
        second = -(1.0 + (b0 * b1).sum(0) / length**2) * first + (b2 * b1).sum(0) / length**2 * last
        forces -= slope * np.stack([first, second, -first - second - last, last])
        return energy + u, np.moveaxis(forces, -1, 0).copy()


def cross(a, b):
    """Of (3,R): np.cross, without what makes it slow."""
    return a[[1, 2, 0]] * b[[2, 0, 1]] - a[[2, 0, 1]] * b[[1, 2, 0]]


def true_torsion(phi):
    """Three wells 45 kJ/mol deep, the one at 180 degrees 2 kJ/mol below the others."""
    return 22.5 * (1.0 + np.cos(3.0 * phi)) + np.cos(phi), -67.5 * np.sin(3.0 * phi) - np.sin(phi)


def wrong_torsion(phi):
    return (24.0 * (1.0 + np.cos(3.0 * phi)) - 1.5 * np.cos(phi - 0.4),
            -72.0 * np.sin(3.0 * phi) + 1.5 * np.sin(phi - 0.4))


class TorsionNetwork(ForceNetwork):
    metadata: dict = {}

    def __init__(self, potential):
        super().__init__(lambda x: potential.batch(x)[1])
        self.energy_and_forces = potential.batch


def chains(n, phi_deg=180.0):
    x = np.zeros((n, 4, 3))
    bend = np.arccos(1 - 0.5 * (0.245 / 0.15) ** 2)
    x[:, 0] = 0.15 * np.array([np.cos(bend), np.sin(bend), 0.0])
    x[:, 2] = [0.15, 0, 0]
    x[:, 3] = x[:, 2] + 0.15 * np.array([-np.cos(bend), np.sin(bend), 0.0])
    return turned(x, [0, 1, 2, 3], np.array([2, 3]), np.full(n, phi_deg))


def test_the_forces_are_the_slope():
    """Or no move of the network would be exact; the sampler would only be slow."""
    rng, h = np.random.default_rng(4), 1e-6
    x, potential = chains(5, 70.0) + 0.01 * rng.standard_normal((5, 4, 3)), Torsion(wrong_torsion)
    for atom, axis in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[atom, axis] = h
        slope = (potential.batch(x + step)[0] - potential.batch(x - step)[0]) / (2 * h)
        assert np.allclose(-slope, potential.batch(x)[1][:, atom, axis], atol=1e-3)


def turns(n, floor=-np.inf):
    side = far_side([0, 1, 2, 3], BONDS, 4)
    return Turns(np.array([[0, 1, 2, 3]]), (side,), n, floor)


def nested(network, n_turns, rungs_K=(300.0,), floor=-np.inf):
    ladder = NetworkLadder(network, Carrier(network), MASSES, 1e-3, rungs_K, n_moves=2, move_steps=10,
                           turns=turns(n_turns, floor) if n_turns else None)
    return Nested(ladder, 20)


def test_a_turn_adds_to_its_torsion_and_changes_no_length_and_no_angle():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4, 3))
    by = rng.uniform(-180, 180, 50)
    y = turned(x, [0, 1, 2, 3], np.array([2, 3]), by)
    torsion = np.array([[0, 1, 2, 3]])
    change = dihedrals_deg(y, torsion)[:, 0] - dihedrals_deg(x, torsion)[:, 0]
    assert np.abs(wrap_deg(change - by)).max() < 1e-9
    assert np.array_equal(y[:, :2], x[:, :2]) and np.abs(y[:, 2] - x[:, 2]).max() < 1e-14
    for i, j in ((2, 3), (1, 3)):
        assert np.allclose(np.linalg.norm(y[:, i] - y[:, j], axis=1), np.linalg.norm(x[:, i] - x[:, j], axis=1))
    assert np.abs(turned(y, [0, 1, 2, 3], np.array([2, 3]), -by) - x).max() < 1e-12
    assert np.array_equal(far_side([0, 1, 2, 3], BONDS, 4), [2, 3])


def wells(phi_deg):
    """Share near 180, 60 and -60 degrees (T,R,3)."""
    return np.stack([np.abs(wrap_deg(phi_deg - centre)) < 60 for centre in (180.0, 60.0, -60.0)], axis=-1)


@pytest.mark.parametrize("rungs_K", [(300.0,), (300.0, 420.0)])
def test_turns_sample_what_lies_behind_a_barrier_exactly_with_a_wrong_network(rungs_K):
    """All chains start in one well; the wrong network prefers another one by 3 kT."""
    truth, network = Torsion(true_torsion), TorsionNetwork(Torsion(wrong_torsion))
    pool, frames, infos = BatchPool(truth), [], []
    scheme = nested(network, 2, rungs_K)
    run(scheme, pool, start_state(pool, chains(96)), np.random.default_rng(1), 120,
        reporters=[lambda s, i: (frames.append(s.positions), infos.append(i))])
    phi = dihedrals_deg(np.array(frames[30:]).reshape(-1, 4, 3), np.array([[0, 1, 2, 3]])).reshape(-1, 96)
    grid = np.linspace(-np.pi, np.pi, 20001)[:-1]
    density = np.exp(-true_torsion(grid)[0] / KT)
    exact = (wells(np.degrees(grid)) * density[:, None]).sum(0) / density.sum()
    shares = wells(phi).mean(axis=0)
    error = shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
    assert (np.abs(shares.mean(axis=0) - exact) < 4 * error).all() and (error < 0.03).all()
    weight = np.exp(-np.array([i.delta_H for i in infos[30:]]) / KT).mean(axis=0)
    assert abs(weight.mean() - 1) < 4 * weight.std(ddof=1) / np.sqrt(len(weight))
    tried, taken = np.sum([i.turns for i in infos], axis=(0, 1))[0]
    assert tried == 120 * 96 * 3 * 2 * 2 and 0.02 < taken / tried < 0.9
    acceptance = np.mean([i.accepted for i in infos[1:]])
    assert 0.2 < acceptance < 0.95


def test_without_turns_no_chain_leaves_its_well():
    truth, network = Torsion(true_torsion), TorsionNetwork(Torsion(wrong_torsion))
    pool = BatchPool(truth)
    state = run(nested(network, 0), pool, start_state(pool, chains(64)), np.random.default_rng(2), 60)
    assert wells(dihedrals_deg(state.positions, np.array([[0, 1, 2, 3]]))[:, 0])[:, 0].all()


def test_no_turn_begins_or_ends_where_the_network_lies_below_its_floor():
    """A hole of 400 kJ/mol at 60 degrees swallows every chain, unless the floor keeps turns out of it."""
    def with_hole(phi):
        (u, slope), hole = true_torsion(phi), 400.0 * np.exp(-(((phi - np.pi / 3) / 0.2) ** 2))
        return u - hole, slope + 50.0 * (phi - np.pi / 3) * hole

    network = TorsionNetwork(Torsion(with_hole))

    def after_turns(x, floor):
        """Energies (R,) after turns alone, and how many were taken."""
        ladder = nested(network, 12, floor=floor).ladder
        x, u, seen = x[:, None].copy(), ladder.energy(x[:, None]), np.zeros((len(x), 1, 2), dtype=int)
        ladder._turn(x, u, seen, np.random.default_rng(3))
        assert np.allclose(u, ladder.energy(x))
        return u, seen[..., 1].sum()

    assert (after_turns(chains(64), -np.inf)[0] < -60.0).any()
    assert not (after_turns(chains(64), -60.0)[0] < -60.0).any() and after_turns(chains(64), -60.0)[1] > 10
    # nor does one lead out, without which it would not be reversible
    assert (after_turns(chains(64, 60.0), -np.inf)[0] < -60.0).all() and after_turns(chains(64, 60.0), -60.0)[1] == 0


def test_what_lies_below_the_floor_stays_and_what_lies_above_stays_above():
    """The floor amid thermal energies, where a turn out of what lies below it would often be taken."""
    network = TorsionNetwork(Torsion(true_torsion))
    ladder, rng = nested(network, 12).ladder, np.random.default_rng(5)
    led = ladder.advance(chains(64)[:, None], ladder.energy(chains(64)[:, None]), rng)
    floor = float(np.median(led.energy))
    x, u, below = led.positions.copy(), led.energy.copy(), led.energy[:, 0] < floor
    nested(network, 12, floor=floor).ladder._turn(x, u, np.zeros((64, 1, 2), dtype=int), rng)
    assert np.array_equal(u[below], led.energy[below]) and np.array_equal(x[below], led.positions[below])
    assert (u[~below] >= floor).all() and (u[~below] != led.energy[~below]).mean() > 0.3


def test_a_molecule_without_torsions_or_without_turns_has_none():
    bare = SimpleNamespace(bonds=BONDS, region=None, rotatable_torsions=lambda: np.zeros((0, 4), dtype=int))
    assert Turns.of(bare, 8, 0.0) is None
    chain = type("Chain", (SimpleNamespace,), {"__len__": lambda self: 4})(**CHAIN)
    assert Turns.of(chain, 0, 0.0) is None
    found = Turns.of(chain, 3, -7.0)
    assert found.n == 2 and found.floor_kJ_per_mol == -7.0 and np.array_equal(found.sides[0], [2, 3])


@pytest.mark.parametrize("scale", [1.0, 0.9, 1.1])
def test_the_floor_is_scaled_as_the_energies_of_the_network_are(scale):
    """delta_scale 1.1 put every energy below the floor, so that no turn was ever taken; 0.9 none, holes not either."""
    chain = type("Chain", (SimpleNamespace,), {"__len__": lambda self: 4})(**CHAIN)
    network = SimpleNamespace(metadata={"lowest_energy_kJ_per_mol": -4.0e5}, delta_scale=scale)
    found = means_of(chain, network, walls=False, mirror=False, turns=3)["turns"]
    assert found.floor_kJ_per_mol == pytest.approx(scale * -4.0e5 - FLOOR_KT * KT, abs=1e-6)
