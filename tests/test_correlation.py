"""MP2, coupled cluster and double hybrids through PySCF: published energies, the same bits, refusals."""

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from kstep.errors import PhysicsError, UserError
from kstep.forces import load_qm_config, physics_spec, qmmm_spec
from kstep.forces.correlation import DOUBLE_HYBRIDS
from kstep.forces.pyscf import PyscfConfig, PyscfPhysics
from kstep.units import KJ_PER_HARTREE, NM_PER_BOHR

# the Programming Projects of the Crawford group (github.com/CrawfordGroup/ProgrammingProjects, projects 3 to 6): water,
# STO-3G, all electrons
CRAWFORD_BOHR = [[0.0, -0.143225816552, 0.0], [1.638036840407, 1.136548822547, 0.0],
                 [-1.638036840407, 1.136548822547, 0.0]]
SCF, MP2, CCSD, TRIPLES = -74.942079928192, -0.049149636120, -0.070680088376, -0.000099877272
X = np.array(CRAWFORD_BOHR) * NM_PER_BOHR


def water_by(**settings):
    return PyscfPhysics([8, 1, 1], [15.999, 1.008, 1.008], **{**dict(functional="HF", basis="STO-3G", device="cpu"),
                                                              **settings})


@pytest.mark.parametrize("correlation, hartree", [
    (None, SCF), ("mp2", SCF + MP2), ("ccsd", SCF + CCSD), ("ccsd(t)", SCF + CCSD + TRIPLES)])
def test_energies_are_the_published_ones(correlation, hartree):
    energy = water_by(correlation=correlation, frozen_core=False).energy(X)
    assert energy / KJ_PER_HARTREE == pytest.approx(hartree, abs=1e-8)


def test_the_frozen_core_is_that_of_pyscf_by_hand():
    """And differs from all electrons by the mH that 1s of oxygen has."""
    from pyscf import cc, gto, scf

    mol = gto.M(atom=[("O", CRAWFORD_BOHR[0]), *(("H", x) for x in CRAWFORD_BOHR[1:])], unit="Bohr", basis="6-31G")
    by_hand = cc.CCSD(scf.RHF(mol).run(conv_tol=1e-11, verbose=0), frozen=1)
    by_hand.verbose, by_hand.conv_tol, by_hand.conv_tol_normt = 0, 1e-10, 1e-8
    by_hand.run()
    frozen, free = (water_by(basis="6-31G", correlation="ccsd(t)", frozen_core=f).energy(X) / KJ_PER_HARTREE
                    for f in (True, False))
    assert frozen == pytest.approx(by_hand.e_tot + by_hand.ccsd_t(), abs=1e-8)
    assert 5e-4 < frozen - free < 5e-3


def test_a_double_hybrid_is_its_functional_and_a_share_of_second_order_on_its_orbitals():
    """Second order by hand, over the orbitals of the same functional."""
    from pyscf import ao2mo, dft, gto

    mol = gto.M(atom=[("O", CRAWFORD_BOHR[0]), *(("H", x) for x in CRAWFORD_BOHR[1:])], unit="Bohr", basis="STO-3G")
    field = dft.RKS(mol, xc="0.53*HF + 0.47*B88, 0.73*LYP")
    field.grids.level, field.verbose = 2, 0
    field.run(conv_tol=1e-10)
    occupied, empty = field.mo_coeff[:, :5], field.mo_coeff[:, 5:]
    e, n = field.mo_energy, empty.shape[1]
    ovov = ao2mo.general(mol, (occupied, empty, occupied, empty), compact=False).reshape(5, n, 5, n)
    gap = e[:5, None, None, None] - e[5:, None, None] + e[:5, None] - e[5:]
    second = (ovov * (2 * ovov - ovov.transpose(0, 3, 2, 1)) / gap).sum()
    energy = water_by(functional="B2PLYP", frozen_core=False).energy(X) / KJ_PER_HARTREE
    assert energy == pytest.approx(field.e_tot + 0.27 * second, abs=1e-7)
    assert DOUBLE_HYBRIDS["B2PLYP"].share == 0.27 and second < -0.03


def test_the_same_geometry_has_the_same_bits_whatever_was_asked_before():
    physics, other = water_by(correlation="ccsd(t)"), X + np.random.default_rng(0).normal(size=X.shape) * 0.004
    first = physics.energy(X)
    moved = physics.energy(other, slot=1)
    assert physics.energy(X, slot=1) == first and physics.energy(other) == moved != first
    warm = water_by(correlation="ccsd(t)", warm_start=True)
    assert [warm.energy(X), warm.energy(other), warm.energy(X)] == [first, moved, first]
    assert water_by(correlation="ccsd(t)").energy(X) == first


def test_bits_do_not_depend_on_the_memory_that_is_left(monkeypatch):
    """Blocks of sums are cut by it; a process that has grown must cut as before."""
    from pyscf import lib

    seen = []
    kept = lib.current_memory()[0]
    for held in (kept, kept + 3000.0):
        monkeypatch.setattr(lib, "current_memory", lambda held=held: (held, held))
        physics = water_by(correlation="ccsd(t)")
        monkeypatch.setattr("pyscf.cc.ccsd.CCSD.ccsd_t",
                            lambda self, *a, held=held: seen.append(self.max_memory - held) or 0.0)
        physics.energy(X)
        physics.energy(X)
    assert seen == pytest.approx(4 * [seen[0]], abs=1e-6)


def test_an_open_shell_is_computed_on_unrestricted_orbitals():
    """The cation of water: by hand, and invariant."""
    from pyscf import cc, gto, scf

    mol = gto.M(atom=[("O", CRAWFORD_BOHR[0]), *(("H", x) for x in CRAWFORD_BOHR[1:])], unit="Bohr", basis="STO-3G",
                charge=1, spin=1)
    by_hand = cc.UCCSD(scf.UHF(mol).run(conv_tol=1e-11, verbose=0), frozen=1)
    by_hand.verbose, by_hand.conv_tol, by_hand.conv_tol_normt = 0, 1e-10, 1e-8
    by_hand.run()
    cation = water_by(correlation="ccsd(t)", charge=1, multiplicity=2)
    assert cation.energy(X) / KJ_PER_HARTREE == pytest.approx(by_hand.e_tot + by_hand.ccsd_t(), abs=1e-7)
    assert np.isfinite(water_by(correlation="mp2", charge=1, multiplicity=2).energy_and_forces(X)[1]).all()


@pytest.mark.parametrize("settings", [{"correlation": "ccsd(t)"}, {"correlation": "ccsd", "density_fit": True},
                                      {"correlation": "mp2", "density_fit": True}])
def test_a_turned_molecule_has_the_same_energy(settings):
    physics = water_by(**settings)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    assert physics.energy(X @ turn + 0.2) == pytest.approx(physics.energy(X), abs=1e-4)


def test_amplitudes_that_do_not_converge_are_a_failed_call_that_counts(monkeypatch):
    from pyscf import cc

    monkeypatch.setattr(cc.ccsd.CCSD, "kernel", lambda self: setattr(self, "converged", False) or setattr(
        self, "e_corr", -0.07))
    physics = water_by(correlation="ccsd(t)")
    with pytest.raises(PhysicsError, match="amplitudes of coupled cluster did not converge in 100 cycles"):
        physics.energy(X)
    assert physics.true_calls == 1


@pytest.mark.parametrize("settings, words", [
    ({"functional": "PBE", "correlation": "mp2"}, "goes on top of Hartree-Fock; set functional: HF"),
    ({"functional": "B2PLYP", "correlation": "mp2"}, "brings its own correlation"),
    ({"correlation": "ccsd(t)", "solvent": "water"}, "in the gas phase alone; leave solvent: water out"),
    ({"correlation": "mp2", "dispersion": "d3bj"}, "leave dispersion: d3bj out"),
    ({"correlation": "ccsd", "charge": 1, "multiplicity": 2, "unrestricted": False}, "leave unrestricted: false out"),
    ({"functional": "B2PLPY"}, "did you mean 'B2PLYP'")])
def test_what_does_not_go_together_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        water_by(**settings)


def test_names_tell_surfaces_apart_and_no_gpu_is_looked_for(water, caplog):
    def name(**settings):
        return PyscfConfig(**{**dict(functional="HF", basis="cc-pVDZ"), **settings}).surface

    assert name(correlation="CCSD(T)") == "CCSD(T)/CC-PVDZ" and name() == "HF/CC-PVDZ"
    assert name(correlation="ccsd(t)", frozen_core=False, density_fit=True) == "DF-AE-CCSD(T)/CC-PVDZ"
    assert name(functional="B2PLYP") == "B2PLYP/CC-PVDZ" and name(frozen_core=False) == "HF/CC-PVDZ"
    with caplog.at_level(logging.INFO, "kstep"):
        assert physics_spec(water, PyscfConfig(functional="HF", correlation="mp2")).settings["device"] == "cpu"
    assert not caplog.records
    with pytest.raises(UserError, match="computed on the CPU; set device: auto"):
        physics_spec(water, PyscfConfig(functional="HF", correlation="mp2", device="gpu"))


def test_the_config_is_coupled_cluster_of_frozen_cores_and_explains_its_keys(water):
    path = Path(__file__).parents[1] / "configs/qm_ccsdt.yaml"
    config = load_qm_config(path)
    assert (config.surface, config.frozen_core, config.density_fit) == ("CCSD(T)/CC-PVDZ", True, False)
    assert config.conv_tol <= 1e-8 and not physics_spec(water, config).has_forces
    assert all("#" in line for line in path.read_text().splitlines())
    assert yaml.safe_load(path.read_text())["call_limit_s"] is None


def test_a_qm_region_has_no_correlated_method():
    surroundings = type("Surroundings", (), {"check_cut": lambda self, atoms: None})()
    with pytest.raises(UserError, match=r"a QM region needs forces on the charges around it, which CCSD\(T\)/STO-3G"):
        qmmm_spec(surroundings, [0], PyscfConfig(functional="HF", correlation="ccsd(t)", basis="STO-3G"))
