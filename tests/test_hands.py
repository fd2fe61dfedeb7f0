"""Equivalent atoms are numbered alike in all conformers: what is left between them is motion, or another hand."""

from itertools import pairwise

import numpy as np
import pytest

from kstep.hands import find_centres, hands, numbered_alike
from kstep.molecules.prepare import prepare_molecule

# two CH2 and a methyl; a ring; an isopropyl; three methyls on one atom; equal O, equal F; an allene; PH2; named centres
MANY = ["CCCO", "CC1CCCCC1", "CC(C)CC=O", "CC(C)(C)CCO", "CCS(=O)(=O)C", "FC(F)CO", "OCC=C=C", "CCP",
        "C[C@H](N)[C@@H](C)O", "CC(C)C(C)C"]


def numberings(x, centres):
    """How many there are but for mirror images."""
    return len({tuple(h * h[0]) for h in hands(x, centres)})


@pytest.mark.parametrize("smiles", MANY)
def test_all_conformers_have_one_numbering_and_are_what_they_were(smiles, monkeypatch):
    alike = prepare_molecule("x", smiles, n_conformers=12).molecule
    monkeypatch.setattr("kstep.molecules.prepare.numbered_alike", lambda x, *_: x)
    m = prepare_molecule("x", smiles, n_conformers=12).molecule
    centres = find_centres(m.numbers, m.bonds, np.arange(len(m)))
    assert numberings(m.conformers, centres) > 1 or "@" in smiles  # or there is nothing to see
    assert numberings(alike.conformers, centres) == 1
    assert np.array_equal(alike.conformers[0], m.conformers[0])
    for before, after in zip(m.conformers, alike.conformers):
        order = [int(np.abs(before - atom).sum(axis=1).argmin()) for atom in after]
        assert sorted(order) == list(range(len(m))) and np.allclose(before[order], after, atol=1e-12)
        assert np.array_equal(m.numbers[order], m.numbers)
        pairs = {tuple(sorted(pair)) for pair in m.bonds.tolist()}
        assert {tuple(sorted((order[i], order[j]))) for i, j in pairs} == pairs  # the same bonds
    assert not any(alike.species().changes(x) for x in alike.conformers)


def test_isotopes_and_other_stereoisomers_keep_their_numbers():
    m = prepare_molecule("x", "CCCO", n_conformers=12).molecule
    centres = find_centres(m.numbers, m.bonds, np.arange(len(m)))
    pair = [h for h in range(len(m)) if m.numbers[h] == 1 and [2, h] in m.bonds.tolist()]
    swapped = m.conformers[:1].copy()
    swapped[0, pair] = swapped[0, pair[::-1]]
    both = np.concatenate([m.conformers[:1], swapped])
    assert np.array_equal(numbered_alike(both, m.numbers, m.bonds, m.masses)[1], m.conformers[0])
    heavy = m.masses.copy()
    heavy[pair[0]] = 2.014
    image = numbered_alike(both, m.numbers, m.bonds, heavy)[1]  # the centre of CHD has turned round: so do all others
    assert np.array_equal(image[pair], both[1, pair])
    assert np.array_equal(hands(image[None], centres), -hands(both[:1], centres))


def test_a_mirror_image_is_numbered_as_one():
    """Of a ring whose C1 has nothing to exchange, half of the conformers are mirror images."""
    m = prepare_molecule("x", "CC1CCCCC1", n_conformers=12).molecule
    image = numbered_alike(np.stack([m.conformers[0], -m.conformers[0]]), m.numbers, m.bonds, m.masses)
    assert np.array_equal(image[1], -m.conformers[0])
    propane = prepare_molecule("x", "CCC", n_conformers=1).molecule  # there it may as well be numbered as the first
    x = numbered_alike(np.stack([propane.conformers[0], -propane.conformers[0]]), propane.numbers, propane.bonds,
                       propane.masses)
    centres = find_centres(propane.numbers, propane.bonds, np.arange(len(propane)))
    assert np.array_equal(*hands(x, centres))


def test_another_stereoisomer_is_left_alone():
    """Two diastereomers differ in a part of the centres that exchange nothing, or in one that exchanges two of them."""
    for pair in (("C[C@H](F)[C@H](C)Cl", "C[C@H](F)[C@@H](C)Cl"),
                 ("C[C@@H](F)[C@H](O)[C@H](C)F", "C[C@@H](F)[C@@H](O)[C@H](C)F")):
        one, other = (prepare_molecule("x", s, n_conformers=1).molecule for s in pair)
        assert np.array_equal(one.bonds, other.bonds)
        methyl = [b for a, b in one.bonds.tolist() if a == 0 and one.numbers[b] == 1]
        swapped = other.conformers.copy()
        swapped[0, methyl] = swapped[0, methyl[1:] + methyl[:1]]  # a turn, which is motion
        swapped[0, methyl[:2]] = swapped[0, methyl[1::-1]]
        heavy = one.numbers > 1
        for geometry in (other.conformers, swapped):
            both = np.concatenate([one.conformers, geometry])
            found = numbered_alike(both, one.numbers, one.bonds, one.masses)
            assert np.array_equal(found[:, heavy], both[:, heavy])
            assert "O" in pair[0] or np.array_equal(found, both)


def test_the_spread_of_a_numbering_is_the_first_conformers(tmp_path):
    """Also in geometries of a file."""
    import kstep

    m = prepare_molecule("x", "CCCC", n_conformers=6).molecule
    centres = find_centres(m.numbers, m.bonds, np.arange(len(m)))
    images = [m.conformers[0]] + [np.where(np.isin(np.arange(len(m)), h)[:, None], m.conformers[0][swap],
                                           m.conformers[0])
                                  for h in ([4, 5], [7, 8]) for swap in [_swap(len(m), h)]]
    lines = []
    for x in images:
        lines += [str(len(m)), ""] + [f"{'C' if z == 6 else 'H'} {a:.8f} {b:.8f} {c:.8f}"
                                      for z, (a, b, c) in zip(m.numbers, 10 * x)]
    (tmp_path / "b.xyz").write_text("\n".join(lines) + "\n")
    found = kstep.prepare(tmp_path / "b.xyz", "b").conformers
    assert all(np.array_equal(*pair) for pair in pairwise(hands(found, centres)))
    assert numberings(np.array(images), centres) > 1


def _swap(n, pair):
    order = np.arange(n)
    order[pair] = order[pair[::-1]]
    return order
