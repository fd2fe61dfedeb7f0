"""A start is a molecule: conformers are judged at preparation, relaxed on the true potential, and judged again."""

import itertools
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

import kstep
from kstep.cli import main
from kstep.errors import UserError
from kstep.forces import physics_spec
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.pool import Truth
from kstep.forces.relaxation import relax
from kstep.forces.tblite import QMConfig
from kstep.molecules.geometry_faults import judge
from kstep.molecules.mmff94 import guessed_parameters
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import molecule_from_smiles, prepare_molecule, prepare_smiles
from kstep.runs import starts as starts_module
from kstep.runs.accounting import Account
from kstep.runs.baseline import off_temperature
from kstep.runs.starts import MOST_CALLS, settle_starts
from kstep.schemas import load_trajectory
from kstep.topology import neighbours
from kstep.units import NM_PER_ANGSTROM

CONFIG = QMConfig()
PLAIN = dict(scheme="plain", dt_fs=0.5, burn_in_steps=0, replicas=2, workers=1)


def prepared(smiles, n_conformers=6, seed=0):
    return prepare_smiles(smiles, "it", n_conformers=n_conformers, seed=seed).molecule


def settled(molecule, wanted=3, **how):
    return settle_starts(molecule, physics_spec(molecule, CONFIG), wanted=wanted, **how)


def widest_deg(molecule, x, n_neighbours=4):
    """Of the angles at first-row atoms with so many neighbours."""
    widest = 0.0
    for j, around in enumerate(neighbours(len(molecule), molecule.bonds)):
        if len(around) == n_neighbours and molecule.numbers[j] in (6, 7):
            for i, k in itertools.combinations(around, 2):
                u, v = x[i] - x[j], x[k] - x[j]
                widest = max(widest, np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))))
    return widest


# cases ---------------------------------------------------------------------------------------

RINGS = ["C1CCCCCC1", "C1=CCCCCC1", "C1=CCNCCC1", "C1CCOCCC1", "C1CCCCCCC1", "C/1=C/CCCCCC1", r"C/1=C\CCCCCC1",
         "C1COCCOCCO1", "O=C1CCCCCCCC1", "C1CCCCCCCCC1", "C1CCSCCCCCCC1", "C1CCCCCCCCCCC1"]
LINEAR = {"O=C=O": 1.14, "N#N": 1.10, "S=C=S": 1.54, "[N-]=[N+]=O": 1.13, "C#N": 1.15, "O=C=C=C=O": 1.16}
# ligands and the shortest distance between two of them in A that is right: sqrt(2) bond lengths, or nearly
HYPERVALENT = {"F[P-](F)(F)(F)(F)F": (6, 2.3), "FS(F)(F)(F)(F)F": (6, 2.2), "F[Xe](F)(F)(F)(F)F": (6, 2.5),
               "FP(F)(F)(F)F": (5, 2.2), "F[Xe](F)(F)F": (4, 2.7), "FS(F)(F)F": (4, 2.2)}


@pytest.mark.parametrize("smiles", RINGS)
def test_no_ring_is_turned_inside_out(smiles):
    """Preparation drops what is, whatever the seed; relaxed starts lie together on the true potential."""
    for seed in (0, 1):
        molecule = prepared(smiles, 20 if seed == 0 else 10, seed=seed)
        assert np.ptp(molecule.conformer_energies) < 100.0
        assert max(widest_deg(molecule, x) for x in molecule.conformers) < 140.0
    starts = settled(molecule, wanted=2)
    assert np.ptp(starts.molecule.conformer_energies) <= 35.0 and starts.record["true_calls"] <= 3 * MOST_CALLS
    assert molecule.species().inside(starts.molecule.conformers).all()


@pytest.mark.parametrize("smiles", LINEAR)
def test_a_linear_molecule_starts_at_its_true_bond_lengths(smiles):
    molecule = prepared(smiles)
    starts = settled(molecule)
    x = starts.molecule.conformers[0]
    lengths = np.linalg.norm(x[molecule.bonds[:, 0]] - x[molecule.bonds[:, 1]], axis=1)
    assert lengths.max() / NM_PER_ANGSTROM == pytest.approx(LINEAR[smiles], abs=0.05) or smiles == "O=C=C=C=O"
    assert starts.record["count"] == 1 and starts.record["unconverged"] == 0
    if len(molecule) == 3:
        assert np.linalg.norm(x - x.mean(0), axis=1).max() > 0  # three places
        u, v = (x[a] - x[c] for c, (a, b) in [(c, around) for c, around in enumerate(
            neighbours(3, molecule.bonds)) if len(around) == 2] for a in (a, b))
        assert u @ v / np.linalg.norm(u) / np.linalg.norm(v) < np.cos(np.radians(170))


@pytest.mark.parametrize("smiles", HYPERVALENT)
def test_a_hypervalent_centre_has_one_arrangement(smiles):
    ligands, apart_A = HYPERVALENT[smiles]
    molecule = prepare_molecule("it", smiles, force_field="none", n_conformers=6).molecule
    starts = settled(molecule)
    for x in starts.molecule.conformers:
        f = x[molecule.numbers == 9]
        distance = np.linalg.norm(f[:, None] - f, axis=2)[np.triu_indices(ligands, 1)] / NM_PER_ANGSTROM
        assert distance.min() == pytest.approx(apart_A, abs=0.25)
        if ligands == 6:  # twelve edges and three diagonals
            assert (distance < 1.2 * distance.min()).sum() == 12 and distance.max() / distance.min() > 1.35


def test_a_hypervalent_centre_without_a_rule_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr("kstep.molecules.conformers.arrange_hypervalent", lambda molecule: None)
    with pytest.raises(UserError, match=r"no structure of .* is the molecule \(conformer 0: F0 and F"):
        prepare_molecule("it", "FS(F)(F)(F)(F)F", force_field="none", n_conformers=3)


def test_isotopes_keep_their_masses():
    starts = settled(prepared("[2H]C([2H])([2H])[2H]"))
    assert starts.molecule.masses[starts.molecule.numbers == 1] == pytest.approx(2.0141, abs=1e-3)


@pytest.mark.parametrize("smiles", ["C=C=C", "C=C=C=C", "CC#CC", "C=C=O"])
def test_cumulenes_stay_straight(smiles):
    molecule = settled(prepared(smiles)).molecule
    x = molecule.conformers[0]
    for j, around in enumerate(neighbours(len(molecule), molecule.bonds)):
        if len(around) == 2:
            u, v = x[around[0]] - x[j], x[around[1]] - x[j]
            assert u @ v / np.linalg.norm(u) / np.linalg.norm(v) < np.cos(np.radians(165))


# a guessed parameter is said or refused ------------------------------------------------------


def test_guessed_bonds_are_told_from_those_of_the_tables():
    def guesses(smiles):
        return guessed_parameters(Chem.AddHs(Chem.MolFromSmiles(smiles)))

    for smiles in ("CCO", "C=O", "CC(=O)Oc1ccccc1C(=O)O", "CN=C=O", "CN=[N+]=[N-]", "C1CCCCCC1", "COP(=O)(OC)OC"):
        assert not guesses(smiles).bonds
    assert guesses("O=C=O").bonds == ["O0=C1 (1.405 A)", "C1=O2 (1.405 A)"]
    for smiles in ("N#N", "S=C=S", "O=S=O", "ClCl", "ON=O"):
        assert guesses(smiles).bonds
    assert guesses("C#N").angles and not guesses("C#N").bonds
    assert not guesses("CC#N").angles and not guesses("CC#N").torsions


def test_a_guessed_bond_is_refused_and_a_guessed_angle_said(tmp_path, capsys):
    arguments = ["prepare", "O=C=O", "--name", "co2", "--out-dir", str(tmp_path)]
    assert main(arguments) == 2
    assert "MMFF94 has no parameters for the bond O0=C1 (1.405 A) of co2" in capsys.readouterr().err
    assert main([*arguments, "--force-field", "none"]) == 0
    assert molecule_from_smiles("O=C=O")[1] is None  # a QM run is not refused for it
    assert main(["prepare", "C#N", "--name", "hcn", "--out-dir", str(tmp_path)]) == 0
    assert "hcn: MMFF94 has no parameters for 1 angles and 0 torsions (N1-C0-H2)" in capsys.readouterr().err
    assert json.loads((tmp_path / "metadata.json").read_text())["hcn"]["guessed_parameters"] == ["N1-C0-H2"]


# judging -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cycloheptane():
    """The molecule, and what RDKit embeds and MMFF94 minimises, one of them inside out."""
    molecule = prepared("C1CCCCCC1", 20)
    embedded = Chem.AddHs(Chem.MolFromSmiles("C1CCCCCC1"))
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = 1
    rdDistGeom.EmbedMultipleConfs(embedded, 20, parameters)
    energies = 4.184 * np.array([e for _, e in rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(embedded, maxIters=5000)])
    return molecule, np.array([c.GetPositions() for c in embedded.GetConformers()]) * NM_PER_ANGSTROM, energies


def test_what_is_turned_inside_out_is_told_by_its_angle_and_by_its_energy(cycloheptane):
    molecule, x, energies = cycloheptane
    bad = [row for row in range(len(x)) if widest_deg(molecule, x[row]) > 150]
    assert bad
    for told in (energies, np.zeros(len(x))):  # without energies too
        judged = judge(molecule, x, told, 100.0)
        assert [each["conformer"] for each in judged.dropped] == bad
        assert "degrees" in judged.dropped[0]["cause"]
        assert set(judged.kept) == set(range(len(x))) - set(bad) and not judged.changed
    good = np.delete(np.arange(len(x)), bad)
    lifted = np.zeros(len(good))
    lifted[3] = 36.0
    judged = judge(molecule, x[good], lifted, 35.0)
    assert judged.dropped == [{"conformer": 3, "cause": "36 kJ/mol above the lowest"}]


def test_each_fault_is_named(ethanol):
    x = ethanol.conformers[:1]
    assert not judge(ethanol, x, np.zeros(1), 35.0).dropped
    broken = x.copy()
    broken[0, 2] += (x[0, 2] - x[0, 1]) * 2.0  # the oxygen
    judged = judge(ethanol, broken, np.zeros(1), 35.0)
    assert "broken" in judged.dropped[0]["cause"] and judged.changed and not len(judged.kept)
    near = x.copy()
    hydrogens = np.flatnonzero(ethanol.numbers == 1)
    near[0, hydrogens[-1]] = x[0, hydrogens[0]] + [0.05, 0, 0]
    assert judge(ethanol, near, np.zeros(1), 35.0).dropped
    failed = judge(ethanol, x, np.zeros(1), 35.0, {0: "SCF"})
    assert failed.dropped == [{"conformer": 0, "cause": "SCF"}] and not failed.changed


@pytest.mark.parametrize("smiles", ["C1C2CC12", "C1=CC1", "FC(F)(F)F", "C12C3C4C1C5C2C3C45", "IC(I)(I)I",
                                    "BrC(Br)(Br)Br", "C[Si](C)(C)O[Si](C)(C)C", "CS(C)(=O)=O", "[O-]Cl(=O)(=O)=O",
                                    "C1CC11CC1"])
def test_strained_and_crowded_molecules_are_molecules(smiles):
    molecule = prepared(smiles, 3)
    assert not settled(molecule, 1).record["dropped"]


# relaxing ------------------------------------------------------------------------------------


def test_relaxing_goes_down_to_the_minimum_and_counts_every_call(ethanol):
    calls, seen = [], []

    def ask(x, rows):
        calls.extend(rows.tolist())
        seen.append(((x[rows == 1] - ethanol.conformers[0]) ** 2).sum())
        d = x - ethanol.conformers[0]
        forces = -2e5 * d
        forces[rows == 2] = np.nan
        return Truth(1e5 * (d**2).sum((1, 2)), forces, rows == 2, tuple("no" if row == 2 else "" for row in rows))

    rng = np.random.default_rng(0)
    x = ethanol.conformers[0] + np.array([0.0, 0.01, 0.01])[:, None, None] * rng.normal(size=(3, len(ethanol), 3))
    found = relax(ask, ethanol.numbers, x, tolerance=100.0, most_calls=40)
    assert found.converged.tolist() == [True, True, False] and found.failures == {2: "no"}
    np.testing.assert_allclose(found.positions[1], ethanol.conformers[0], atol=1e-3)
    assert seen[1] < seen[0]  # uphill at first, a quadratic is solved all the same
    assert found.energies[1] < 1.0 and calls.count(0) == 1 and calls.count(2) == 1 and 2 <= calls.count(1) <= 20
    assert found.true_calls.tolist() == [calls.count(row) for row in range(3)]


def test_it_is_the_same_with_workers_and_a_resumed_run_does_not_pay_twice(ethanol, tmp_path, monkeypatch):
    spec, how = physics_spec(ethanol, CONFIG), dict(wanted=2, first=1)
    here = settle_starts(ethanol, spec, **how)
    monkeypatch.setattr(starts_module, "POOL_PAYS_S", 0.0)
    away = settle_starts(ethanol, spec, n_workers=2, keep=tmp_path / "a.starts", **how)
    np.testing.assert_array_equal(here.molecule.conformers, away.molecule.conformers)
    np.testing.assert_array_equal(here.molecule.conformer_energies, away.molecule.conformer_energies)
    assert here.record == away.record and here.spent["true_calls"] == away.spent["true_calls"] > 2
    with EvaluationPool(spec, 1) as pool:
        truth = pool.evaluate(here.molecule.conformers)
    np.testing.assert_allclose(truth.energy, here.molecule.conformer_energies, atol=1e-3)
    assert np.linalg.norm(truth.forces, axis=2).max() <= 101.0
    monkeypatch.setattr(starts_module, "make_pool", None)  # nothing is asked any more
    kept = settle_starts(ethanol, spec, keep=tmp_path / "a.starts", resume=True, **how)
    np.testing.assert_array_equal(kept.molecule.conformers, here.molecule.conformers)
    assert kept.kept and kept.spent == away.spent
    for other in (dict(how, wanted=1), dict(how, first=0)):
        with pytest.raises(TypeError):
            settle_starts(ethanol, spec, keep=tmp_path / "a.starts", resume=True, **other)


def test_starts_are_paid_once_whatever_was_cut(ethanol):
    class Pool:
        true_calls, cpu_s, wall_s = 0, 0.0, 0.0

    starts = starts_module.Starts(ethanol, {}, spent={"true_calls": 7, "wall_s": 2.0, "cpu_s": 1.0})

    def calls(starts, earlier=None):
        account = Account(starts)
        account.charge(Pool(), None)
        if earlier is not None:
            account.go_on(earlier)
        return account.so_far()["true_calls"]

    assert calls(starts) == 7 and calls(None) == 0
    before = Account(starts)
    before.charge(Pool(), None)
    before.begin_production()
    assert before.so_far()["true_calls_burn_in"] == 7 and before.so_far()["cpu_burn_in_s"] >= 1.0
    assert calls(replace(starts, kept=True), before.so_far()) == 7
    assert calls(starts, before.so_far()) == 14  # the file in which they were kept was gone


# in runs -------------------------------------------------------------------------------------


def test_a_run_counts_and_names_its_starts(tmp_path):
    run = kstep.sample("O=C=O", "configs/qm_fast.yaml", out=tmp_path / "a.npz", steps=10, **PLAIN)
    found = run.metadata["starts"]
    assert found["relaxed_on"] == "GFN2-xTB" and found["count"] == 1 and found["dropped"] == []
    assert run.metadata["true_calls"] == found["true_calls"] + 2 * 11
    assert run.metadata["true_calls_burn_in"] == found["true_calls"] + 2
    off = kstep.sample("O=C=O", {"backend": "tblite", "relax_starts": False}, out=tmp_path / "b.npz", steps=10, **PLAIN)
    assert "starts" not in off.metadata and off.metadata["true_calls"] == 2 * 11
    plain = kstep.simulate("O=C=O", "configs/qm_fast.yaml", out=tmp_path / "c.npz", workers=1, equilibration_ps=0.05,
                           length_ps=0.05, redraw_interval_ps=0.05, hot_length_ps=0)
    assert plain.metadata["true_calls"] == plain.metadata["starts"]["true_calls"] + 2 * 201
    assert not (tmp_path / "c.npz.starts").exists()


def test_a_resumed_run_is_bit_equal_and_starts_where_it_did(tmp_path):
    how = dict(PLAIN, checkpoint_interval=4)
    whole = kstep.sample("CCO", "configs/qm_fast.yaml", out=tmp_path / "a.npz", steps=8, **how)
    kstep.sample("CCO", "configs/qm_fast.yaml", out=tmp_path / "b.npz", steps=4, **how)
    longer = kstep.sample("CCO", "configs/qm_fast.yaml", out=tmp_path / "b.npz", steps=8, resume=True, **how)
    a, b = (load_trajectory(run.path) for run in (whole, longer))
    np.testing.assert_array_equal(a.pos, b.pos)
    assert a.metadata["starts"] == b.metadata["starts"] and a.metadata["true_calls"] == b.metadata["true_calls"]


def test_a_run_that_is_cut_and_resumed_pays_its_starts_once(tmp_path, monkeypatch):
    """Cut before its first restart file, and after it."""
    from kstep.runs import production

    steps = production.macro_steps

    def cut_after(most):
        def cut(*args, **kwargs):
            for n, state in enumerate(steps(*args, **kwargs)):
                if n >= most:
                    raise KeyboardInterrupt
                yield state
        return cut

    how = dict(PLAIN, checkpoint_interval=4, steps=8)
    whole = kstep.sample("O=C=O", "configs/qm_fast.yaml", out=tmp_path / "a.npz", **how)
    for name, most in (("b.npz", 2), ("c.npz", 6)):
        monkeypatch.setattr(production, "macro_steps", cut_after(most))
        with pytest.raises(KeyboardInterrupt):
            kstep.sample("O=C=O", "configs/qm_fast.yaml", out=tmp_path / name, **how)
        monkeypatch.setattr(production, "macro_steps", steps)
        resumed = kstep.sample("O=C=O", "configs/qm_fast.yaml", out=tmp_path / name, resume=True, **how)
        a, b = (load_trajectory(run.path) for run in (whole, resumed))
        np.testing.assert_array_equal(a.pos, b.pos)
        assert a.metadata["starts"] == b.metadata["starts"]
        assert a.metadata["true_calls"] == b.metadata["true_calls"] == 2 * 9 + a.metadata["starts"]["true_calls"]


def test_a_zwitterion_is_run_by_dynamics_that_says_so_and_refused_by_walls(tmp_path, caplog):
    zwitterion = prepared("[NH3+]CC(=O)[O-]", 2)
    with caplog.at_level(logging.WARNING, logger="kstep"):
        starts = settled(zwitterion, must_hold=False)
    assert "does not hold on GFN2-xTB" in caplog.text and "sits on O" in starts.caveats[0]
    assert zwitterion.species().inside(starts.molecule.conformers).all() and starts.molecule.relaxed_on == ""
    with pytest.raises(UserError, match=r"no conformer of it is a start on GFN2-xTB \(conformer 0: H\d sits on O"):
        settled(zwitterion)
    run = kstep.sample(zwitterion, "configs/qm_fast.yaml", out=tmp_path / "a.npz", steps=2, **PLAIN)
    assert any("does not hold" in words for words in run.metadata["caveats"]) and run.metadata["starts"]["dropped"]


def test_preparation_relaxes_on_a_qm_method_and_runs_on_it_do_not_again(tmp_path, capsys):
    assert main(["prepare", "OCCF", "--name", "fe", "--out-dir", str(tmp_path), "--n-conformers", "4", "--num-workers",
                 "1", "--qm-config", "configs/qm_fast.yaml"]) == 0
    molecule = Molecule.load(tmp_path / "fe")
    record = json.loads((tmp_path / "metadata.json").read_text())["fe"]
    assert record["starts"]["true_calls"] > 4 and record["relaxed_on"] == molecule.relaxed_on == "GFN2-xTB"
    spec = physics_spec(molecule, CONFIG)
    with EvaluationPool(spec, 1) as pool:
        np.testing.assert_allclose(pool.evaluate(molecule.conformers).energy, molecule.conformer_energies, atol=1e-3)
    first = next(line for line in (tmp_path / "fe" / "structure.pdb").read_text().splitlines() if "HETATM" in line)
    xyz = [float(first[n:n + 8]) for n in (30, 38, 46)]
    np.testing.assert_allclose(xyz, molecule.conformers[0][0] / NM_PER_ANGSTROM, atol=2e-3)
    again = settle_starts(molecule, spec, wanted=2)
    assert again.record["at_preparation"] and not again.spent
    np.testing.assert_array_equal(again.molecule.conformers, molecule.conformers)
    assert settle_starts(molecule, physics_spec(molecule, QMConfig(charge=2)), wanted=1).spent["true_calls"] > 1
    assert main(["prepare", "[NH3+]CC(=O)[O-]", "--name", "gly", "--out-dir", str(tmp_path), "--n-conformers", "2",
                 "--num-workers", "1", "--qm-config", "configs/qm_fast.yaml"]) == 2
    assert "no conformer of gly is a start on GFN2-xTB" in capsys.readouterr().err


def test_a_run_that_is_not_at_its_temperature_says_so():
    assert "2619 K where 300 K" in off_temperature(2619.0, 300.0, 100)
    assert off_temperature(100.0, 300.0, 1000)
    assert not off_temperature(330.0, 300.0, 10**6) and not off_temperature(500.0, 300.0, 6)
    assert not off_temperature(float("nan"), 300.0, 0)


LEARN = dict(fit_passes=5, round_passes=3, max_true_calls=20, learn_replicas=8, search_steps=1, verify_proposals=8)


def test_learning_starts_from_the_same_and_counts_them_where_no_run_does(tmp_path):
    from kstep.models import checkpoint as checkpoints

    how = dict(out=tmp_path / "a.npz", workers=1, device="cpu")
    network = kstep.learn("N#N", "configs/qm_fast.yaml", **LEARN, **how)
    alone = checkpoints.load(network)["true_calls_training"]
    run = kstep.sample("N#N", "configs/qm_fast.yaml", learn=LEARN, steps=4, replicas=4, burn_in_steps=2,
                       **how | {"out": tmp_path / "b.npz"})
    relaxing = run.metadata["starts"]["true_calls"]
    assert relaxing > 1 and alone == run.metadata["true_calls_training"] + relaxing
    assert run.metadata["true_calls_burn_in"] >= relaxing + 4
