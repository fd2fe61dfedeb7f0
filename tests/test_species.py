"""The molecule stays the molecule: walls around its species, exact for samplers; plain dynamics is watched aloud."""

import itertools
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rdkit import Chem

import kstep
from conftest import BatchPool, BondPotential, ForceNetwork, start_state
from kstep.analysis.judge.compare import caveats
from kstep.analysis.metrics.proposals import PROPOSALS
from kstep.errors import UserError
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import prepare_smiles
from kstep.molecules.species import Species
from kstep.runs import run_hybrid as hybrid_module, run_network
from kstep.runs.baseline_engines import OpenMMEngine
from kstep.runs.baseline_plan import Stretch
from kstep.runs.coverage import SpeciesWatch, describe_changes
from kstep.runs.loop import macro_steps, run
from kstep.runs.network_dynamics import Carrier
from kstep.runs.tuning import thermalise
from kstep.schemas import load_trajectory
from kstep.schemes import Metropolis, Nested
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.network_ladder import NetworkLadder
from kstep.units import kT
from test_sampler import SpringNetwork


def molecule_of(smiles, n_conformers=4):
    return prepare_smiles(smiles, seed=1, n_conformers=n_conformers).molecule


def moved(x, atoms, shift):
    """A copy of x (N,3) in which atoms have moved together."""
    out = x.copy()
    out[atoms] += shift
    return out


# a test on the geometry alone ------------------------------------------------------------------

NAMED = ["C[C@H](O)F", "C[C@@H](O)F", "O[C@H](C)F", "[C@](F)(Cl)(Br)I", "C[S@](=O)CC", "C[S@@](=O)CC", "CC[S@](C)=O",
         "N[C@@H](C)C(=O)O", "C[P@](c1ccccc1)CC", "C[N@+](CC)(CCC)C(C)C", "C[C@H]1CC[C@@H](C)C1", "[H][C@](F)(Cl)C",
         "C[C@H](O)[C@@H](F)C(=O)N[C@H](C)c1ccccc1", "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O", "C[Si@H](F)Cl"]


@pytest.mark.parametrize("smiles", NAMED)
def test_a_named_stereocentre_is_a_wall_and_its_sense_is_that_of_the_smiles(smiles):
    """Conformers come from RDKit's embedding, which has its own idea of @ and @@."""
    molecule = molecule_of(smiles)
    species = molecule.species()
    assert species.inside(molecule.conformers).all() and not species.achiral
    assert not species.inside(-molecule.conformers).any()
    said = species.changes(-molecule.conformers[0])
    assert len(said) == smiles.replace("@@", "@").count("@") and all("turned over" in clause for clause in said)


@pytest.mark.parametrize("smiles", ["CC(O)F", "C[N@]1C[C@]1(F)F", "CN(CC)C(C)C", "CCO"])
def test_what_no_name_holds_may_turn_over(smiles):
    """An unnamed centre, and a nitrogen of three neighbours even where it is named."""
    molecule = molecule_of(smiles)
    assert molecule.species().achiral and molecule.species().inside(-molecule.conformers).all()


@pytest.mark.parametrize("smiles, achiral", [("C[S@OH1](F)(Cl)(Br)(I)O", False), ("C[P@TB1](F)(Cl)(Br)I", False),
                                             ("CS(F)(F)(F)(F)F", True), ("F/C=C/F", True)])
def test_a_handedness_that_no_wall_holds_is_not_mirrored(smiles, achiral):
    """Or chains would mix the two: an octahedral centre that is named."""
    named = Chem.AddHs(Chem.MolFromSmiles(smiles))
    numbers = np.array([atom.GetAtomicNum() for atom in named.GetAtoms()])
    bonds = np.array([sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in named.GetBonds()])
    n = len(numbers)
    molecule = Molecule("m", smiles, numbers, np.ones(n), bonds, np.ones(len(bonds)), np.zeros((1, n, 3)), np.zeros(1),
                        0, 1)
    assert molecule.species().stereo.known and molecule.species().achiral is achiral


def test_a_single_centre_inverts_and_nothing_else_is_said():
    molecule = molecule_of("C[C@H](O)F")
    x, centre = molecule.conformers[0], molecule.conformers[0][1]
    others = [int(a) for pair in molecule.bonds for a in pair if 1 in pair and a != 1]
    hydrogen = next(a for a in others if molecule.numbers[a] == 1)
    # the hydrogen goes through the plane of the other three, at its own length
    axis = x[hydrogen] - centre
    turned = moved(x, [hydrogen], -2.0 * axis)
    assert molecule.species().changes(turned) == ["the stereocentre C1 is turned over"]


@pytest.mark.parametrize("smiles, sentence", [("C/C=C/C", "went from E to Z"), ("C/C=C\\C", "went from Z to E"),
                                              ("F/C(Cl)=C(/C)Br", "went from "), ("C/C=N/O", "C1=N2 went from")])
def test_a_named_double_bond_is_a_wall(smiles, sentence):
    molecule = molecule_of(smiles)
    species = molecule.species()
    assert species.inside(molecule.conformers).all()
    bond = next(pair for pair, order in zip(molecule.bonds, molecule.bond_orders) if order == 2)
    turned = np.array([turned_about(molecule, x, *bond) for x in molecule.conformers])
    assert not species.inside(turned).any() and sentence in species.changes(turned[0])[0]
    unnamed = replace(molecule, smiles=smiles.replace("/", "").replace("\\", ""))
    assert unnamed.species().inside(turned).all()


def turned_about(molecule, x, j, k):
    """x (N,3) with what hangs on k turned half round the bond j-k."""
    from kstep.topology import neighbours, reachable

    side = sorted(reachable(int(k), neighbours(len(molecule), molecule.bonds), (int(j), int(k))))
    axis = (x[k] - x[j]) / np.linalg.norm(x[k] - x[j])
    arm, out = x[side] - x[k], x.copy()
    out[side] = x[k] + 2.0 * np.outer(arm @ axis, axis) - arm
    return out


def test_a_bond_that_is_broken_or_new_is_named():
    molecule = molecule_of("CCCC")
    x, species = molecule.conformers[0], molecule.species()
    assert species.changes(x) == []
    along = (x[1] - x[0]) / np.linalg.norm(x[1] - x[0])
    methyl = [0, *(int(h) for h in np.unique(molecule.bonds[(molecule.bonds == 0).any(1)]) if molecule.numbers[h] == 1)]
    stretched = [moved(x, methyl, -stretch * along) for stretch in (0.03, 0.09)]
    assert species.changes(stretched[0]) == []
    assert species.changes(stretched[1]) == ["the bond C0-C1 is broken"]
    # the ends brought together: hydrogens apart, so that the carbons alone decide
    near = x.copy()
    near[3] = near[0] + [0.0, 0.0, 0.17]
    assert "a bond C0-C3 has formed" in species.changes(near)
    near[3] = near[0] + [0.0, 0.0, 0.20]
    assert not any("formed" in clause for clause in species.changes(near))


def test_a_moved_proton_is_named_with_where_it_went():
    molecule = molecule_of("[NH3+]CC(=O)[O-]")
    species = molecule.species()
    x = next(c for c in molecule.conformers if species.inside(c[None])[0])
    hydrogen, oxygen = int(np.flatnonzero(molecule.numbers == 1)[0]), int(np.flatnonzero(molecule.numbers == 8)[1])
    on_oxygen = x.copy()
    outward = x[oxygen] - x[:5].mean(axis=0)
    on_oxygen[hydrogen] = x[oxygen] + 0.097 * outward / np.linalg.norm(outward)
    assert species.changes(on_oxygen) == [f"H{hydrogen} sits on O{oxygen} now"]
    # halfway it is where it was, until it is nearer in units of covalent radii
    owner = int(next(a for pair in molecule.bonds for a in pair if hydrogen in pair and a != hydrogen))
    between = x.copy()
    away = (x[hydrogen] - x[owner]) / np.linalg.norm(x[hydrogen] - x[owner])
    between[oxygen] = x[owner] + 0.25 * away  # nm, a strong hydrogen bond away from all others
    for share, stays in ((0.506, True), (0.52, False)):  # nitrogen is the larger of the two
        between[hydrogen] = between[owner] + share * (between[oxygen] - between[owner])
        assert (f"H{hydrogen} sits on O{oxygen} now" not in species.changes(between)) == stays


def test_many_geometries_are_judged_as_one_is_and_silence_means_inside():
    """An arbitrary molecule, heated until half of its geometries are wrecks; moved and turned as a whole."""
    molecule = molecule_of("C[C@H](NC(=O)/C=C/c1ccsc1)C(F)(F)OP")
    species, rng = molecule.species(), np.random.default_rng(0)
    x = molecule.conformers[0] + 0.03 * rng.random((200, 1, 1)) * rng.standard_normal((200, len(molecule), 3))
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    x = x @ rotation + [30.0, -20.0, 10.0]
    together = species.inside(x)
    assert 0.2 < together.mean() < 0.8
    assert together.tolist() == [bool(species.inside(one[None])[0]) for one in x]
    assert together.tolist() == [not species.changes(one) for one in x]
    lost = np.full_like(x[:1], np.nan)
    assert not species.inside(lost)[0] and species.changes(lost[0]) == ["positions are not finite"]


HOT = ["CC(=O)Oc1ccccc1C(=O)O", "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O", "C1CC2CC1C2", "O=C1CCCCN1",
       "C/C=C/C(=O)N[C@@H](C)C#N", "ClC(Cl)C(F)S", "OCC(O)CO", "C1CC1[N+](C)(C)C"]


@pytest.mark.parametrize("smiles", HOT)
def test_hot_dynamics_stays_inside(smiles):
    """MMFF94 at 700 K, whose bonds are harmonic in their neighbourhood, as a hot rung of a ladder would be."""
    prepared = prepare_smiles(smiles, seed=3, n_conformers=2)
    import openmm

    engine = OpenMMEngine(openmm.XmlSerializer.serialize(prepared.system), prepared.molecule.masses, "Reference", 0.5,
                          20.0)
    x = prepared.molecule.conformers[0]
    frames = []
    engine.run(engine.start(x, np.zeros_like(x)), Stretch("hot", "NVT", 700.0, 8000, True), np.random.default_rng(0),
               20, lambda state: frames.append(state.positions[0]))
    seen, species = np.array(frames), prepared.molecule.species()
    left = np.flatnonzero(~species.inside(seen))
    assert not len(left), species.changes(seen[left[0]])
    first, second = seen[:, prepared.molecule.bonds.T].transpose(1, 0, 2, 3)
    assert np.linalg.norm(first - second, axis=-1).std(axis=0).max() > 0.0035  # it is hot indeed: 0.0024 at 300 K


def test_a_region_is_judged_by_its_own_atoms_and_water_is_none_of_its_business():
    solute = molecule_of("C[C@H](O)F")
    n = len(solute)
    water = np.array([[0.0, 0.0, 1.0], [0.096, 0.0, 1.0], [-0.024, 0.093, 1.0]])
    whole = replace(
        solute, numbers=np.concatenate([solute.numbers, [8, 1, 1]]), masses=np.concatenate([solute.masses, [16, 1, 1]]),
        bonds=np.concatenate([solute.bonds, [[n, n + 1], [n, n + 2]]]),
        bond_orders=np.concatenate([solute.bond_orders, [1, 1]]),
        conformers=np.concatenate([solute.conformers, np.tile(water, (len(solute.conformers), 1, 1))], axis=1))
    x = whole.conformers[0]
    wreck = moved(x, [n + 1], [0.0, 0.0, 5.0])
    region = replace(whole, region=np.arange(n)).species()
    assert region.inside(np.array([x, wreck])).all() and not region.achiral
    assert not region.inside(np.array([-x, moved(x, [n - 1], [0, 0, 0.2])])).any()
    everything = replace(whole, region=np.arange(n + 3)).species()
    assert everything.inside(x[None])[0] and "is broken" in " ".join(everything.changes(wreck))
    # a region without the centre's neighbours cannot tell which way it is turned
    assert replace(whole, region=np.array([0, 1])).species().inside(-x[None])[0]


@pytest.mark.parametrize("smiles", ["", "not a smiles", "C[C@H](O)Cl"])
def test_without_a_smiles_of_these_atoms_bonds_alone_are_walls(smiles):
    molecule = replace(molecule_of("C[C@H](O)F"), smiles=smiles)
    species = molecule.species()
    assert species.inside(-molecule.conformers).all() and not species.achiral
    assert not species.inside(1.7 * molecule.conformers).any()


def test_a_wall_costs_less_than_50_us_per_geometry():
    import time

    molecule = molecule_of("CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O")
    species, x = molecule.species(), np.repeat(molecule.conformers[:1], 64, axis=0)
    best = np.inf
    for _ in range(10):
        began = time.process_time()
        species.inside(x)
        best = min(best, time.process_time() - began)
    assert best / 64 < 50e-6


# a wall within a sampler -----------------------------------------------------------------------

K_BOND, R_BOND = 2.0e4, 0.15
MASSES = np.array([12.0, 1.0])
WALL = 0.153  # nm, a quarter of a standard deviation beyond the minimum


def spring(stiffness=K_BOND):
    return BondPotential(MASSES, [(0, 1)], lambda r: 0.5 * stiffness * (r - R_BOND) ** 2,
                         lambda r: stiffness * (r - R_BOND))


def length(x):
    return np.linalg.norm(x[:, 1] - x[:, 0], axis=-1)


def inside(x):
    return length(x) < WALL


def truncated_mean(temperature_K):
    r = np.linspace(0.05, WALL, 20001)
    weight = r**2 * np.exp(-0.5 * K_BOND * (r - R_BOND) ** 2 / kT(temperature_K))
    return (r * weight).sum() / weight.sum()


def starts(n):
    x = np.zeros((n, 2, 3))
    x[:, 1, 0] = R_BOND - 0.005
    return x


NETWORK = SpringNetwork(spring(0.7 * K_BOND))  # wrong enough that the truth has to judge
NETWORK.metadata = {}


class Redrawing(Metropolis):
    """Draws anew what ends outside, in the place of refusing it: wrong."""

    def propose(self, state, info, rng):
        proposal = super().propose(state, info, rng)
        while not inside(proposal.positions).all():
            again, bad = super().propose(state, info, rng), ~inside(proposal.positions)
            for mine, other in ((proposal.positions, again.positions), (proposal.velocities, again.velocities),
                                (proposal.extra["start"], again.extra["start"])):
                mine[bad] = other[bad]
        return proposal


def metropolis(kind=Metropolis, wall=inside):
    return kind(Carrier(NETWORK), MASSES, 1e-3, 4, 300.0, length_law="uniform", inside=wall)


def nested(wall=inside, temperatures_K=(300.0, 420.0), n_moves=3):
    return Nested(NetworkLadder(NETWORK, Carrier(NETWORK), MASSES, 1e-3, temperatures_K, n_moves=n_moves, move_steps=4,
                                inside=wall), 4 * n_moves)


def sampled(scheme, n_steps=400, n_replicas=300, seed=3):
    """Mean bond length and its error from independent chains, every frame's bond, the sums and delta_H of the run."""
    pool, rng, lengths, changes, sums = BatchPool(spring()), np.random.default_rng(seed), [], [], []

    def record(state, info):
        lengths.append(length(state.positions))
        changes.append(info.delta_H)
        sums.append(scheme.count(info))

    run(scheme, pool, start_state(pool, starts(n_replicas)), rng, n_steps, reporters=[record])
    lengths = np.array(lengths)
    chains = lengths[n_steps // 6:].mean(axis=0)
    return SimpleNamespace(mean=chains.mean(), error=chains.std(ddof=1) / np.sqrt(n_replicas), lengths=lengths,
                           sums=sums, delta_H=np.array(changes))


@pytest.mark.parametrize("make", [metropolis, nested])
def test_a_sampler_with_a_wall_samples_the_truncated_distribution(make):
    found = sampled(make())
    assert found.error < 8e-5 and found.lengths.max() < WALL
    assert abs(found.mean - truncated_mean(300.0)) < 4 * found.error


def test_a_wall_that_is_applied_wrongly_would_be_seen():
    """Not at all; to frames alone, which keep the last one inside; and by drawing anew what ends outside."""
    free = sampled(metropolis(wall=None))
    assert free.mean - truncated_mean(300.0) > 50 * free.error
    kept = np.concatenate([length(starts(300))[None], free.lengths])
    for before, after in itertools.pairwise(kept):
        after[after >= WALL] = before[after >= WALL]
    redrawn = sampled(metropolis(Redrawing, wall=None), n_steps=200, n_replicas=200).lengths
    for lengths in (kept, redrawn):
        chains = lengths[len(lengths) // 6:].mean(axis=0)
        error = chains.std(ddof=1) / np.sqrt(len(chains))
        assert lengths.max() < WALL
        assert abs(chains.mean() - truncated_mean(300.0)) > 8 * error


def test_the_identity_holds_over_what_ends_inside():
    found, scheme = sampled(metropolis()), metropolis()
    weights, tested = np.exp(-found.delta_H / kT(300.0)), ~np.isnan(found.delta_H)
    assert 0.05 < (~tested).mean() < 0.5
    sums = {"macro_steps": found.delta_H.size, "accepted": 1, "swaps": {}}
    for key in ("sum_exp", "sum_exp_squared"):
        sums[key] = sum(one[key] for one in found.sums)
    sums["walls"] = {"0": sum(one["walls"]["0"] for one in found.sums)}
    assert sums["walls"]["0"] == (~tested).sum()
    figures = scheme.summarise(sums)
    assert figures["mean_exp_minus_beta_dH"] == pytest.approx(weights[tested].mean(), rel=1e-9)
    assert figures["figures"]["refused_at_walls"] == [pytest.approx((~tested).mean())]
    settled = slice(100, None)  # chains start away from equilibrium
    of_chain = np.nanmean(np.where(tested, weights, np.nan)[settled], axis=0)
    error = of_chain.std(ddof=1) / np.sqrt(len(of_chain))
    assert error < 0.006 and abs(of_chain.mean() - 1.0) < 4 * error
    nowhere = scheme.summarise({**sums, "walls": {"0": sums["macro_steps"]}})
    assert "mean_exp_minus_beta_dH" not in nowhere and "<exp" not in scheme.last_words(nowhere)
    as_zero = np.where(tested, weights, 0.0)[settled].mean()
    assert as_zero == pytest.approx(tested[settled].mean(), abs=0.01)  # the share inside, and no identity


def test_the_report_knows_what_a_wall_refused():
    """Refusals count in the acceptance and not in the identity."""
    found = sampled(metropolis(), n_steps=300, n_replicas=40)
    accepted = np.zeros_like(found.delta_H, dtype=bool)
    accepted[1:] = found.lengths[1:] != found.lengths[:-1]
    trajectory = SimpleNamespace(pos=np.zeros((found.delta_H.size, 2, 3)), delta_H=found.delta_H.T.ravel(),
                                 accepted=accepted.T.ravel().astype(np.int8), metadata={}, is_weighted=False,
                                 is_judged_by_weight=False)
    frames = np.arange(found.delta_H.size).reshape(40, 300)
    value = PROPOSALS.compute(SimpleNamespace(
        run=trajectory, profile=SimpleNamespace(replicas=list(frames[:, 50:]), temperature_K=300.0),
        traits=Metropolis.traits))
    assert value["count"] == 40 * 250
    assert value["acceptance"] == pytest.approx(accepted[50:].mean())
    assert abs(value["exp_minus_beta_dH"] - 1.0) < 4 * value["standard_error"] < 0.1
    trajectory.delta_H[:] = np.nan  # a run that never left the wall
    trajectory.accepted[:] = 0
    value = PROPOSALS.compute(SimpleNamespace(run=trajectory, profile=None, traits=Metropolis.traits))
    assert value["acceptance"] == 0.0 and "verdict" not in value


def test_every_rung_of_a_ladder_has_its_walls_counted():
    ladder = TemperatureLadder((300.0, 900.0))
    scheme = Metropolis(Carrier(NETWORK), MASSES, 1e-3, 4, 300.0, length_law="uniform", ladder=ladder, inside=inside)
    pool, rng = BatchPool(spring()), np.random.default_rng(1)
    sums = {"0": 0, "1": 0}
    for _, info in macro_steps(scheme, pool, start_state(pool, starts(100)), rng, 100):
        for rung, n in scheme.count(info)["walls"].items():
            sums[rung] += n
        assert not info.accepted[np.isnan(info.delta_H)].any()
    assert 0 < sums["0"] < sums["1"]


def test_starts_thermalise_within_the_walls():
    rng = np.random.default_rng(2)
    for wall in (inside, None):
        x = thermalise(NETWORK, Carrier(NETWORK), starts(200), MASSES, TemperatureLadder((300.0,)), rng, n_steps=20,
                       inside=wall)
        assert (wall is None) != inside(x).all()


# where walls come from -------------------------------------------------------------------------


def built(smiles, scheme=Nested, region=None, **keys):
    molecule = molecule_of(smiles)
    config = HybridConfig(scheme=scheme.name, dt_fs=1.0, k_steps=20, moves=2, network_ladder_K=[300.0],
                          temperature_K=300.0, **keys)
    if region is not None:
        molecule = replace(molecule, region=region)
    return scheme.build(config, molecule, network=NETWORK, carry=Carrier(NETWORK), masses=molecule.masses,
                        needs_forces=False)


def test_samplers_have_the_walls_of_their_molecule_unless_a_key_takes_them_away():
    molecule = molecule_of("C[C@H](O)F")
    for scheme in (Metropolis, Nested):
        walls = built(molecule.smiles, scheme).inside
        assert walls(molecule.conformers).all() and not walls(-molecule.conformers).any()
        assert built(molecule.smiles, scheme, keep_species=False).inside is None
    nested_scheme = built(molecule.smiles, Nested)
    assert nested_scheme.ladder.inside is nested_scheme.inside


def test_mirror_images_are_moves_where_they_are_the_same_species():
    assert built("CCO").ladder.mirror and built("CC(O)F").ladder.mirror
    assert not built("C[C@H](O)F").ladder.mirror
    assert not built("CCO", mirror_images=False).ladder.mirror
    assert not built("CCO", region=np.arange(9)).ladder.mirror
    assert built("CCO", keep_species=False).ladder.mirror


def water_run(water, tmp_path, monkeypatch, conformers=None, name="water.npz", **keys):
    from test_real_molecules import mmff94_xml, physics

    network = ForceNetwork(lambda x: np.zeros_like(x))  # flies apart: bonds break at once
    network.device, network.metadata = "cpu", {}
    monkeypatch.setattr(run_network, "load_network", lambda **_: network)
    hybrid = HybridConfig(scheme="metropolis", k_steps=60, dt_fs=0.6, steps=30, burn_in_steps=2, replicas=8,
                          temperature_K=300.0, inner="numpy", **keys)
    if conformers is not None:
        water = replace(water, conformers=conformers, conformer_energies=np.zeros(len(conformers)))
    spec = physics(water, mmff94_xml(water))
    metadata = hybrid_module.run_hybrid(
        hybrid_module.HybridRun(water, spec, "mmff94", hybrid, None, tmp_path / name, seed=1), {}, {})
    return metadata, load_trajectory(tmp_path / name)


def test_a_run_says_how_often_its_chains_came_to_a_wall(water, tmp_path, monkeypatch, caplog):
    from kstep.runs.counters import describe

    metadata, found = water_run(water, tmp_path, monkeypatch)
    share, = metadata["figures"]["refused_at_walls"]
    assert 0.0 < share < 1.0 and share == metadata["tally"]["walls"]["0"] / (30 * 8)
    assert np.isnan(found.delta_H[found.frames_of("train")]).mean() == pytest.approx(share)
    assert f"{100 * share:.2g} % refused at walls" in describe(metadata)
    assert water.species().inside(found.pos).all() and metadata["species_changes"] == []
    words, = (caveat for caveat in metadata["caveats"] if f"{100 * share:.0f} % of the moves" in caveat)
    assert share > 0.1 and words in [record.getMessage() for record in caplog.records]
    json.dumps(metadata)
    free, _ = water_run(water, tmp_path, monkeypatch, name="free.npz", keep_species=False)
    assert not any("% of the moves" in words for words in free["caveats"])
    assert free["figures"]["refused_at_walls"] == [0.0] and "walls" not in describe(free)


def test_a_start_of_another_species_is_refused_in_one_sentence(water, tmp_path, monkeypatch):
    broken = water.conformers.copy()
    broken[0, 1] += 2.0 * (broken[0, 1] - broken[0, 0])
    with pytest.raises(UserError, match=r"start of replica 0 is not the water .*bond O0-H1 is broken.*keep_species"):
        water_run(water, tmp_path, monkeypatch, conformers=broken)


# plain dynamics only watches -------------------------------------------------------------------


def test_a_watch_says_the_first_change_once_and_goes_on_where_it_was_cut(water):
    said, x = [], np.repeat(water.conformers[:1], 3, axis=0)
    broken = x.copy()
    broken[1, 2] += 0.2
    watch, replicas = SpeciesWatch(water, say=said.append), np.arange(3)
    watch.see(x, 0.0, replicas)
    watch.see(broken, 0.01, replicas)  # looked a moment ago
    assert not watch.changes
    watch.see(broken, 0.03, replicas)
    assert watch.changes == [{"replica": 1, "time_ps": 0.03, "what": "the bond O0-H2 is broken"}]
    assert len(said) == 1 and "water is no longer the molecule of its SMILES: the bond O0-H2 is broken" in said[0]
    resumed = SpeciesWatch(water, say=said.append)
    resumed.go_on(json.loads(json.dumps(watch.kept)))
    both = broken.copy()
    both[0, 1] += 0.2
    resumed.see(both, 0.04, replicas)  # too early after the cut as well
    assert len(resumed.changes) == 1
    resumed.see(both, 0.06, replicas)
    assert [c["replica"] for c in resumed.changes] == [1, 0] and len(said) == 1
    assert describe_changes(resumed.changes, 3) == ("the molecule changed in 2 of 3 replicas, first at 0.03 ps: "
                                                    "the bond O0-H2 is broken")
    assert describe_changes([], 3) == ""


def test_plain_dynamics_of_a_gas_phase_zwitterion_says_that_its_proton_moved(tmp_path, caplog):
    """GFN2-xTB, a baseline in this process and a plain run through the hybrid's loop."""
    from kstep.forces import physics_spec
    from kstep.forces.tblite import QMConfig
    from kstep.runs.baseline_jobs import ReplicaJob, run_replica

    zwitterion = molecule_of("[NH3+]CC(=O)[O-]", n_conformers=1)
    assert zwitterion.species().inside(zwitterion.conformers).all()
    config = QMConfig(equilibration_ps=0.2, length_ps=0.4, redraw_interval_ps=0.2, dt_fs=0.5, replicas=1,
                      temperature_K=300.0)
    spec = physics_spec(zwitterion, config)
    with caplog.at_level(logging.WARNING, logger="kstep"):
        result = run_replica(ReplicaJob(zwitterion, spec, config, 0, 1, tmp_path / "piece.npz", False))
    change, = result.species_changes
    assert "sits on O" in change["what"] and 0.0 < change["time_ps"] <= 0.6
    assert sum("no longer the molecule of its SMILES" in record.message for record in caplog.records) == 1
    caplog.clear()
    hybrid = HybridConfig(scheme="plain", k_steps=1, dt_fs=0.5, steps=1000, burn_in_steps=0, replicas=1,
                          temperature_K=300.0, save_interval_steps=20)
    with caplog.at_level(logging.WARNING, logger="kstep"):
        metadata = hybrid_module.run_hybrid(
            hybrid_module.HybridRun(zwitterion, spec, "GFN2-xTB", hybrid, None, tmp_path / "plain.npz", seed=1), {}, {})
    change, = metadata["species_changes"]
    assert "sits on O" in change["what"]
    assert sum("no longer the molecule of its SMILES" in record.message for record in caplog.records) == 1
    warnings = caveats(load_trajectory(tmp_path / "plain.npz"))
    assert any(change["what"] in words for words in warnings)


def test_a_baseline_in_processes_says_it_too(tmp_path, caplog):
    """Its workers have no log: what they say reaches the one of the run, and its file keeps it."""
    with caplog.at_level(logging.INFO, logger="kstep"):
        result = kstep.simulate("[NH3+]CC(=O)[O-]", "configs/qm_fast.yaml", out=tmp_path / "zwitterion.npz", replicas=2,
                                equilibration_ps=0.2, length_ps=0.3, redraw_interval_ps=0.3, dt_fs=0.5,
                                drift_windows=0, hot_length_ps=0, workers=1)
    changes = result.metadata["species_changes"]
    assert {c["replica"] for c in changes} <= {0, 1} and changes
    words = describe_changes(changes, 2)
    assert words in result.metadata["caveats"]
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert any("no longer the molecule of its SMILES" in record.getMessage() for record in said)
    assert any(words in record.getMessage() for record in caplog.records if record.levelno == logging.INFO)


def test_a_molecule_that_stays_is_not_spoken_of(ethanol, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="kstep"):
        watch = SpeciesWatch(ethanol)
        watch.see(ethanol.conformers, 0.0, np.arange(len(ethanol.conformers)))
    assert not watch.changes and not caplog.records
    assert isinstance(watch.species, Species)
