"""Bad input gets one sentence and exit code 2, executes nothing and costs no file that was there."""

import json
import pickle

import numpy as np
import pytest
import torch

import synthetic
from conftest import run_program
from kstep.config import load_config
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces.base import Physics, check_start
from kstep.forces.openmm import MDConfig, read_system
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.molecules.molecule import Molecule, check_name
from kstep.npz import read_npz
from kstep.runs.recorder import TrajectoryWriter
from kstep.schemas import load_trajectory
from kstep.schemes.state import State
from kstep.training.splits import select


@pytest.mark.parametrize("kind, text, words", [
    (MDConfig, "dt_fs: 1\ndt_fs: 2\n", "'dt_fs' is there twice (again in line 2)"),
    (MDConfig, "- 1\n", "must be a mapping"),
    (MDConfig, "replicas: true\n", "not true or false"),
    (MDConfig, "length_ps: 1e99\n", "length_ps"),
    (MDConfig, "dt_fs: 1e-300\n", "dt_fs"),
    (MDConfig, "temperature_K: .nan\n", "temperature_K"),
    (MDConfig, "!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    (ModelConfig, "heads: {energi: true}\n", "did you mean 'energy'"),
    (ModelConfig, "hidden_dim: 100000000\n", "hidden_dim"),
    (ModelConfig, "cutoff_nm: 1e-9\n", "cutoff_nm"),
])
def test_bad_config_is_one_sentence(tmp_path, kind, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as failure:
        load_config(kind, path)
    assert words in str(failure.value) and str(path) in str(failure.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "CON", "x" * 101, "\u00e9thanol", "metadata.json", 3])
def test_unsafe_names_are_refused(name):
    with pytest.raises(UserError):
        check_name(name)


def rewritten(path, change):
    """The trajectory at `path` with its arrays and metadata changed."""
    with np.load(path) as archive:
        arrays = dict(archive)
    metadata = json.loads(str(arrays["metadata"]))
    metadata = change(arrays, metadata) or metadata
    np.savez(path, **{**arrays, "metadata": np.array(json.dumps(metadata))})
    return path


@pytest.mark.parametrize("change, words", [
    (lambda a, m: m.pop("segments") and m, "no table of segments"),
    (lambda a, m: m.update(segments=[{"role": "train"}]), "no table of segments"),
    (lambda a, m: m.update(segments=m["segments"][:1]), "segment that its metadata does not list"),
    (lambda a, m: m.update(dt_fs="fast"), "dt_fs"),
    (lambda a, m: m.update(dt_fs=0), "dt_fs"),
    (lambda a, m: [1], "no mapping"),
    (lambda a, m: a["bonds"].__iadd__(50) is None, "a bond names an atom"),
    (lambda a, m: a["atom_types"].__imul__(-1) is None, "atomic numbers"),
    (lambda a, m: a["masses"].fill(0), "masses"),
])
def test_broken_trajectory_is_refused(tmp_path, change, words):
    path = tmp_path / "t.npz"
    synthetic.save(path, synthetic.ethanol(replicas=2, frames=20))
    load_trajectory(path)
    with pytest.raises(UserError, match=words):
        load_trajectory(rewritten(path, change))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00", pickle.dumps([1])])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError) as failure:
        read_npz(tmp_path / "x.npz")
    assert "allow_pickle" not in str(failure.value)


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", pos=np.array([{}], dtype=object))
    with pytest.raises(UserError):
        read_npz(tmp_path / "x.npz")


def good_checkpoint():
    return {"state_dict": {"w": torch.ones(2)}, "config": ModelConfig().model_dump(), "normalisation": {},
            "k_steps": 4, "dt_fs": 0.5, "spans": [4, 2], "units": checkpoints.UNITS, "elements": [1], "molecule": None,
            "temperature_K": 300.0, "method": "m", "data_sha256": "", "true_calls_training": 0}


@pytest.mark.parametrize("change", [
    {"config": 3}, {"config": {"arch": "nothing"}}, {"spans": "4"}, {"k_steps": "4"}, {"dt_fs": None},
    {"dt_fs": float("nan")}, {"state_dict": [1]}, {"state_dict": {"w": torch.full((2,), torch.nan)}},
], ids=str)
def test_broken_checkpoint_is_refused(tmp_path, change):
    path = tmp_path / "c.pt"
    torch.save(good_checkpoint(), path)
    checkpoints.load(path)
    torch.save(good_checkpoint() | change, path)
    with pytest.raises(UserError):
        checkpoints.load(path)


class Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_checkpoint_executes_nothing(tmp_path):
    torch.save(good_checkpoint() | {"method": Touch(str(tmp_path / "executed"))}, tmp_path / "c.pt")
    with pytest.raises(UserError):
        checkpoints.load(tmp_path / "c.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("split", [
    [], {"molecules": "ethanol"}, {"molecules": ["ethanl"]}, {"molecules": ["ethanol"], "bloks": [1]},
    {"molecules": ["ethanol"], "blocks": 3}, {"molecules": ["ethanol"], "blocks": [[1], [2, 3]]},
], ids=str)
def test_broken_split_is_refused(split):
    arrays = {"molecule_id": np.zeros(3, int), "block": np.arange(3)}
    with pytest.raises(UserError):
        select(arrays, {"molecules": [{"name": "ethanol"}]}, split)


@pytest.mark.parametrize("key, value", [
    ("masses", np.zeros(3)), ("numbers", np.array([500, 1, 1])), ("numbers", np.array(list("OHH"))),
    ("bonds", np.array([[0, 7]])), ("conformers", np.zeros((0, 3, 3))), ("conformers", np.full((1, 3, 3), np.nan)),
    ("masses", np.ones(2)), ("metadata", np.array("[1]")),
])
def test_broken_molecule_is_refused(tmp_path, water, key, value):
    water.save(tmp_path / "molecule.npz")
    assert len(Molecule.load(tmp_path)) == 3
    np.savez(tmp_path / "molecule.npz", **{**read_npz(tmp_path / "molecule.npz"), key: value})
    with pytest.raises(UserError):
        Molecule.load(tmp_path)


def test_atoms_on_top_of_each_other_are_refused():
    class Flat(Physics):
        def _compute(self, positions, slot):
            return 0.0, np.zeros_like(positions)

    with pytest.raises(UserError, match="conformer 1"):
        check_start(Flat([1, 1], [1.0, 1.0]), np.array([[[0, 0, 0], [0.1, 0, 0]], np.zeros((2, 3))]))


def test_system_of_nothing_is_refused():
    with pytest.raises(UserError, match="no OpenMM System"):
        read_system("<foo/>", 3)


def test_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "file/below.npz"):
        with pytest.raises(OSError, match="cannot be written"):
            check_writable(path)
    check_writable(tmp_path / "new/x.npz")
    assert (tmp_path / "file").read_text() == "kept" and not list((tmp_path / "new").iterdir())


def test_two_runs_into_one_file_do_not_mix(tmp_path):
    def writer():
        return TrajectoryWriter(tmp_path / "x.npz", masses=np.ones(1), masses_sampler=np.ones(1), atom_types=np.ones(1),
                                bonds=np.zeros((0, 2)), fingerprint={})

    first, second = writer(), writer()
    first.start_over()
    first.checkpoint(State(np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.zeros(1), np.zeros((1, 1, 3))),
                     np.random.default_rng(0), {})
    for attempt in (second.start_over, second.resume):
        with pytest.raises(UserError, match="another run"):
            attempt()
    first.release()
    assert second.resume() is not None


@pytest.mark.parametrize("arguments, words", [
    (("00_prep_mols.py", "--seed", "nan"), "nan is not a whole number >= 0"),
    (("00_prep_mols.py", "--n-conformers", "99999999999999999999"), "whole number >= 1 and <="),
    (("00_prep_mols.py", "--smiles", "CCO", "--name", "x", "--out-dir", "FILE"), "file: a file is there, where"),
    (("06b_hybrid_integrate_qm.py", "--smiles", "O", "--learn", "--out", "FILE/x.npz"), "file: a file is there, where"),
])
def test_scripts_answer_in_one_line(tmp_path, arguments, words):
    (tmp_path / "file").write_text("kept")
    name, *flags = [a.replace("FILE", str(tmp_path / "file")) for a in arguments]
    finished = run_program(f"src/{name}", *flags)
    assert finished.returncode == 2 and words in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_that_may_not_be_read_is_not_called_truncated(tmp_path, monkeypatch):
    """'delete it' would be the wrong advice for a disk or a right that is at fault."""
    from kstep.config import read_yaml

    np.savez(tmp_path / "t.npz", x=np.zeros(3))
    (tmp_path / "c.yaml").write_text("a: 1")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", denied)
    with pytest.raises(UserError, match="cannot be read .Permission denied.") as caught:
        read_npz(tmp_path / "t.npz")
    assert "delete" not in str(caught.value)
    monkeypatch.setattr("pathlib.Path.read_text", denied)
    with pytest.raises(UserError, match="cannot be read .Permission denied."):
        read_yaml(tmp_path / "c.yaml")
