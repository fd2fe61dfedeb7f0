"""The front door from Python: ten names, light to import, and results that other programs open."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import kstep
import synthetic
from kstep.analysis.show.formats import FORMATS
from kstep.models.device import pick_device
from kstep.schemas import load_trajectory
from kstep.units import KJ_PER_EV

HEAVY = ("torch", "rdkit", "openmm", "scipy", "numpy", "ase", "mdtraj", "pydantic", "matplotlib")
SHORT = dict(steps=6, burn_in_steps=1, replicas=2, workers=1, device="cpu")


def python(code, cwd=None):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True,
                          timeout=300)


def test_import_is_light():
    """The best of three fresh processes, since others may use the machine."""
    code = f"""
        import json, sys, time
        start = time.perf_counter(); import kstep; spent = time.perf_counter() - start
        print(json.dumps([spent, [m for m in {HEAVY} if m in sys.modules]]))
        """
    found = [json.loads(python(code).stdout) for _ in range(3)]
    assert min(spent for spent, _ in found) < 0.3
    assert found[0][1] == []


def test_the_names_are_there_and_no_others():
    assert set(kstep.__all__) == {"prepare", "simulate", "learn", "sample", "evaluate", "load", "export", "populations",
                                  "average", "Result", "Molecule", "UserError", "__version__"}
    assert all(getattr(kstep, name) is not None and name in dir(kstep) for name in kstep.__all__)
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        kstep.smaple  # noqa: B018


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A short run of methanol by plain steps, from a SMILES."""
    out = tmp_path_factory.mktemp("front") / "methanol.npz"
    return kstep.sample("CO", "GFN2-xTB", scheme="plain", out=out, **SHORT)


def test_a_result_is_the_file(plain):
    file = load_trajectory(plain.path)
    rows = file.frames_of("train")
    rows = rows[np.lexsort((file.step[rows], file.replica[rows]))]  # replica after replica
    assert np.array_equal(plain.positions, file.pos[rows]) and np.array_equal(plain.energies, file.Epot[rows])
    assert len(plain) == len(rows) < len(plain.all()) == len(file.pos)
    assert plain.metadata == file.metadata and plain.true_calls == file.metadata["true_calls"]
    assert plain.acceptance is None and file.metadata["molecule"] == "CH4O"
    assert "12 true calls" not in str(plain) and f"{plain.true_calls} true calls" in str(plain)
    assert "\n" not in str(plain) and str(plain.path) in str(plain)


def test_a_result_opens_as_atoms_and_as_mdtraj(plain):
    atoms, trajectory = plain.atoms(), plain.mdtraj()
    assert np.allclose([a.positions for a in atoms], 10 * plain.positions, atol=1e-12)
    assert np.allclose([a.get_potential_energy() for a in atoms], plain.energies / KJ_PER_EV)
    forces = plain.trajectory.forces[plain.frames]
    assert np.allclose([a.get_forces() for a in atoms], forces / KJ_PER_EV * 0.1)
    assert np.allclose(trajectory.xyz, plain.positions, atol=1e-6)  # single precision
    assert trajectory.topology.n_bonds == len(plain.trajectory.bonds)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "hdf5"])  # that takes pytables
def test_an_export_is_read_back(plain, tmp_path, name):
    import ase.io
    import mdtraj
    from rdkit import Chem

    path = kstep.export(plain, tmp_path / f"x.{name}")
    if name in ("extxyz", "xyz", "traj"):
        positions = 0.1 * np.array([frame.positions for frame in ase.io.read(path, ":")])
    elif name == "sdf":
        positions = 0.1 * np.array([molecule.GetConformer().GetPositions()
                                    for molecule in Chem.SDMolSupplier(str(path), removeHs=False)])
    else:
        top = {} if name == "pdb" else {"top": plain.mdtraj().topology}
        positions = mdtraj.load(str(path), **top).xyz
    assert positions.shape == plain.positions.shape and np.abs(positions - plain.positions).max() < 1e-3
    assert [file.name for file in tmp_path.iterdir()] == [f"x.{name}"]


def test_an_unknown_format_is_named(plain, tmp_path):
    with pytest.raises(kstep.UserError, match="no format is called 'extxzy'; did you mean 'extxyz'"):
        kstep.export(plain, tmp_path / "x.extxzy")


@pytest.mark.parametrize("call, words", [
    (lambda: kstep.sample("CO", shceme="plain"), "unknown key 'shceme'; did you mean 'scheme'"),
    (lambda: kstep.sample("CO", "qm_fats", scheme="plain"), "no config file, and no backend"),
    (lambda: kstep.sample("CO", learn={"max_calls": 3}, workers=1), "unknown key 'max_calls'"),
    (lambda: kstep.simulate("CO", {"method": "GFN2-xTB", "lenght_ps": 1.0}), "did you mean 'length_ps'"),
    (lambda: kstep.sample("C1C", scheme="plain"), "cannot be read"),
    (lambda: kstep.sample("data/raw/none", scheme="plain"), "a prepared folder that does not exist"),
    (lambda: kstep.load(__file__), "npz"),
    (lambda: kstep.sample("O", "md_fast", scheme="plain", out=""), "give the name of a file to write"),
    (lambda: kstep.simulate("O", "md_fast", out="."), "give the name of a file to write"),
])
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, call, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kstep.UserError, match=words) as failure:
        call()
    assert "\n" not in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_without_out_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = kstep.sample("CO", "qm_fast", scheme="plain", **{**SHORT, "steps": 2})
    second = kstep.sample("CO", "qm_fast", scheme="plain", **{**SHORT, "steps": 2})
    assert [r.path.name for r in (first, second)] == ["CH4O.npz", "CH4O_2.npz"]


def test_a_prepared_molecule_is_sampled_by_its_force_field(tmp_path):
    molecule = kstep.prepare("CO", "methanol", out=tmp_path)
    assert isinstance(molecule, kstep.Molecule) and (tmp_path / "methanol/system.xml").is_file()
    plain = kstep.simulate(tmp_path / "methanol", "md_fast", out=tmp_path / "plain.npz", length_ps=0.1, replicas=1)
    assert plain.metadata["method"] == "mmff94" and len(plain) > 50
    run = kstep.sample(molecule, "md_fast", scheme="plain", out=tmp_path / "run.npz", start=plain.path, **SHORT)
    report = kstep.evaluate(run, plain, out=tmp_path / "eval")
    assert "methanol" in report.metrics["molecules"] and (tmp_path / "eval/report.html").is_file()
    assert str(report)


def test_a_script_without_its_guard_is_told_so_before_anything_starts(tmp_path):
    body = f"""result = kstep.sample("CO", "qm_fast", scheme="plain", steps=2, burn_in_steps=0, replicas=2, workers=2,
                      out={str(tmp_path / "x.npz")!r})
print(result)
"""
    (tmp_path / "bare.py").write_text(f"import kstep\n{body}")
    guarded = "\n".join(f"    {line}" for line in body.splitlines())
    (tmp_path / "guarded.py").write_text(f"import kstep\nif __name__ == '__main__':\n{guarded}\n")
    bare = subprocess.run([sys.executable, tmp_path / "bare.py"], capture_output=True, text=True, timeout=300)
    assert bare.returncode == 1 and "bare.py, line 2" in bare.stderr and "if __name__" in bare.stderr
    assert bare.stderr.count("Traceback") == 1 and not (tmp_path / "x.npz").exists()
    good = subprocess.run([sys.executable, tmp_path / "guarded.py"], capture_output=True, text=True, timeout=300)
    assert good.returncode == 0 and "true calls" in good.stdout, good.stderr[-1000:]


def test_a_network_is_learned_and_then_sampled_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = dict(bootstrap_labels_per_atom=4, learn_moves=2, learn_move_fs=20, learn_replicas=4, round_passes=5,
                 fit_passes=10, search_steps=1, verify_proposals=8, max_true_calls=60)
    result = kstep.sample("O", name="water", learn=small, k_steps=20, dt_fs=0.5, **SHORT)
    assert result.path.name == "water.npz" and 0 <= result.acceptance <= 1
    assert result.metadata["true_calls_training"] > 0
    again = kstep.sample("O", name="water", network="water.npz.learn/network.pt", k_steps=20, dt_fs=0.5, out="b.npz",
                         **SHORT)
    assert again.metadata["checkpoint_sha256"] == result.metadata["checkpoint_sha256"]


def test_a_network_of_another_method_is_refused_before_a_true_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = dict(bootstrap_labels_per_atom=4, learn_moves=2, learn_move_fs=20, learn_replicas=4, round_passes=5,
                 fit_passes=10, search_steps=1, verify_proposals=8, max_true_calls=60)
    network = kstep.learn("O", "md_fast", out="water", workers=1, device="cpu", **small)
    with pytest.raises(kstep.UserError, match="was trained on mmff94, this run uses GFN2-xTB"):
        kstep.sample("O", network=network, k_steps=20, dt_fs=0.5, out="water_xtb.npz", **SHORT)
    assert not list(tmp_path.glob("water_xtb*"))  # its starts would lie there


def test_a_run_in_the_place_of_a_molecule_is_named(plain):
    with pytest.raises(kstep.UserError, match="methanol.npz holds a 'trajectory' and no molecule; give a SMILES"):
        kstep.sample(str(plain.path), "md_fast", scheme="plain", **SHORT)


def test_frames_of_an_isomer_start_nothing(tmp_path):
    """Atoms alone are no molecule: those of 1-propanol and of 2-propanol stand in the same order."""
    other = kstep.sample("CC(C)O", "md_fast", scheme="plain", out=tmp_path / "iso.npz", **SHORT)
    with pytest.raises(kstep.UserError, match="iso.npz is a trajectory of another molecule than propanol"):
        kstep.sample("CCCO", "md_fast", name="propanol", scheme="plain", start=other, out=tmp_path / "n.npz", **SHORT)


def test_frames_of_a_stereoisomer_start_nothing(tmp_path):
    """Neither plain MD, which has no walls, comes back from there."""
    other = kstep.sample("C/C=C/C", "md_fast", scheme="plain", out=tmp_path / "trans.npz", **SHORT)
    with pytest.raises(kstep.UserError, match="trans.npz is a trajectory of another stereoisomer than cis .*Z to E"):
        kstep.sample("C/C=C\\C", "md_fast", name="cis", scheme="plain", start=other, out=tmp_path / "cis.npz", **SHORT)
    kstep.sample("C/C=C/C", "md_fast", name="trans", scheme="plain", start=other, out=tmp_path / "t.npz", **SHORT)


def test_a_single_atom_has_nothing_to_learn_and_no_true_call_is_made_for_it(tmp_path):
    with pytest.raises(kstep.UserError, match="single atom"):
        kstep.sample("[He]", learn=True, workers=1, out=tmp_path / "he.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ask, answer", [
    (lambda run: run.average("radius_of_gyration", 0), "above 0, and not at 0 K"),
    (lambda run: run.average("radius_of_gyration", -300), "above 0, and not at -300 K"),
    (lambda run: run.populations(float("nan")), "above 0, and not at nan K"),
    (lambda run: run.average(lambda x: 1j * x[:, 0, 0]), "complex"),
    (lambda run: kstep.populations([]), "no run was given"),
    (lambda run: run.profile("distance:0-1", bins=0), "bins = 0 is no whole number of 2 or more"),
    (lambda run: kstep.prepare("CO", seed=-1), "seed = -1 is no whole number of 0 or more"),
    (lambda run: kstep.simulate("CO", "md_fast", workers=0), "workers = 0 is no whole number of 1 or more"),
    (lambda run: pick_device("gpu"), "no device called 'gpu'; known: auto, cpu, cuda")])
def test_numbers_that_are_none_are_one_sentence(plain, ask, answer):
    """Average, population and profile at no temperature came out as numbers; others ended in a traceback."""
    with pytest.raises(kstep.UserError, match=answer):
        ask(plain)


def test_what_is_production_follows_the_roles(tmp_path):
    run = synthetic.ethanol(replicas=2, frames=20)
    synthetic.save(tmp_path / "t.npz", run)
    result = kstep.load(tmp_path / "t.npz")
    rows = load_trajectory(tmp_path / "t.npz").frames_of("train", "reference", "drift")
    assert np.array_equal(np.sort(result.frames), rows)


def test_an_ase_calculator_is_a_true_potential(plain, tmp_path):
    """The same potential as the project's own GFN2-xTB, from a factory that goes to worker processes."""
    from functools import partial

    from tblite.ase import TBLite

    run = kstep.sample("CO", partial(TBLite, method="GFN2-xTB", accuracy=0.1, verbosity=0), scheme="plain",
                       out=tmp_path / "x.npz", **{**SHORT, "steps": 2})
    assert run.metadata["backend"] == "ase" and "TBLite" in run.metadata["method"]
    first = plain.all()
    assert np.allclose(run.all().energies[:2], first.energies[:2], atol=0.01)
