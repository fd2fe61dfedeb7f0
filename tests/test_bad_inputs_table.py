"""More than a hundred inputs that are wrong: each is answered with one sentence that holds the words beside it."""

import json

import numpy as np
import pytest

from kstep.cli import flags
from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import check_name, read_json
from kstep.forces import load_qm_config
from kstep.forces.openmm import MDConfig
from kstep.learning.learn_config import LearnConfig
from kstep.models.model_config import ModelConfig
from kstep.molecules.molecule import Molecule
from kstep.molecules.smiles import parse_smiles, read_smiles_file
from kstep.schemas import load_dataset, load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.training.splits import select
from kstep.training.train_config import TrainConfig

YAML = [  # kind, text, words
    (MDConfig, "temperature_K: 0", "temperature_K"), (MDConfig, "temperature_K: -1", "temperature_K"),
    (MDConfig, "temperature_K: 1e9", "temperature_K"), (MDConfig, "temperature_K: .inf", "temperature_K"),
    (MDConfig, "temperature_K: warm", "temperature_K"), (MDConfig, "temperature_K: [300]", "temperature_K"),
    (MDConfig, "temperature_K: {a: 1}", "temperature_K"), (MDConfig, "temperature_K: yes", "not true or false"),
    (MDConfig, "dt_fs: 0", "dt_fs"), (MDConfig, "dt_fs: 50", "dt_fs"), (MDConfig, "dt_fs: 0.5 fs", "dt_fs"),
    (MDConfig, "dt: 0.5", "unknown key 'dt'"), (MDConfig, "temprature_K: 300", "did you mean 'temperature_K'"),
    (MDConfig, "replicas: 0", "replicas"), (MDConfig, "replicas: 1.5", "replicas"),
    (MDConfig, "replicas: 1000000000", "replicas"), (MDConfig, "length_ps: -1", "length_ps"),
    (MDConfig, "length_ps: .nan", "length_ps"), (MDConfig, "redraw_interval_ps: 0", "redraw_interval_ps"),
    (MDConfig, "save_interval_steps: 0", "save_interval_steps"), (MDConfig, "drift_windows: -3", "drift_windows"),
    (MDConfig, "friction_per_ps: -5", "friction_per_ps"), (MDConfig, "dt_fs 0.5", "must be a mapping"),
    (MDConfig, "a: [1", "not valid YAML"), (MDConfig, "\ta: 1", "not valid YAML"), (MDConfig, "a: b: c", "not valid"),
    (MDConfig, "dt_fs: 1\ndt_fs: 1", "is there twice"), (MDConfig, "- dt_fs: 1", "must be a mapping"),
    (MDConfig, "dt_fs: " + "[" * 50 + "9" * 3000 + "]" * 50, "dt_fs"),
    (MDConfig, "dt_fs: '" + "9" * 5000 + "'", "dt_fs"),
    (MDConfig, "k" * 1000 + ": 1", "unknown key"), (MDConfig, "dt_fs: 2026-99-99", "not valid YAML"),
    (MDConfig, "dt_fs: " + "9" * 5000, "not valid YAML"), (MDConfig, "dt_fs: !!timestamp x", "not valid YAML"),
    (MDConfig, "dt_fs: !!int x", "not valid YAML"), (MDConfig, "dt_fs: !!bool x", "not valid YAML"),
    (MDConfig, "\n".join(["_0: &n0 [9, 9]", *(f"_{i}: &n{i} [*n{i - 1}, *n{i - 1}]" for i in range(1, 60)),
                          "dt_fs: *n59"]), "unknown key"),
    (MDConfig, "dt_fs: " + "[[" * 3 + "&a [" + "9," * 99 + "], " + "*a, " * 99 + "]]" * 3, "dt_fs"),
    (MDConfig, "dt_fs: !!python/name:os.system", "not valid YAML"), (MDConfig, "&a {b: *c}", "not valid YAML"),
    (MDConfig, "? [a]\n: 1", "not valid YAML"), (MDConfig, "[" * 3000, "not valid YAML"),
    ("qm", "backend: orca", "unknown backend"), ("qm", "backend: tbite", "did you mean 'tblite'"),
    ("qm", "method: GFN3-xTB", "method"), ("qm", "accuracy: 0", "accuracy"), ("qm", "max_iterations: 0", "max_iter"),
    ("qm", "charge: 0.5", "charge"), ("qm", "charge: true", "not true or false"),
    ("qm", "spin_multiplicity: 0", "spin_multiplicity"), ("qm", "basis: def2-svp", "means nothing to backend tblite"),
    ("qm", "backend: pyscf\nmethod: pbe", "no key 'method'"), ("qm", "electronic_temperature_K: -1", "electronic"),
    (HybridConfig, "scheme: metropolys", "scheme"), (HybridConfig, "k_steps: 0", "k_steps"),
    (HybridConfig, "k_steps: 2.5", "k_steps"), (HybridConfig, "replicas: -1", "replicas"),
    (HybridConfig, "thermostat: nose", "thermostat"), (HybridConfig, "steps: 0", "steps"),
    (HybridConfig, "max_hours: 0", "max_hours"), (HybridConfig, "stepps: 3", "did you mean 'steps'"),
    (HybridConfig, "burn_in_steps: -1", "burn_in_steps"), (HybridConfig, "delta_scale: -1", "delta_scale"),
    (HybridConfig, "tempering_K: 300", "tempering_K"), (HybridConfig, "population_error: 0", "population_error"),
    (ModelConfig, "arch: gpt", "arch"), (ModelConfig, "hidden_dim: 0", "hidden_dim"),
    (ModelConfig, "heads: 3", "heads"), (ModelConfig, "heads: {energy: maybe}", "heads.energy"),
    (ModelConfig, "num_layers: -1", "num_layers"), (ModelConfig, "elements: [0]", "elements"),
    (ModelConfig, "cutoff_nm: 0", "cutoff_nm"), (ModelConfig, "dropout: 2", "dropout"),
    (TrainConfig, "lr: 0", "lr"), (TrainConfig, "lr: 1e400", "lr"), (TrainConfig, "batch_size: 0", "batch_size"),
    (TrainConfig, "ema_decay: 1", "ema_decay"), (TrainConfig, "lambda_energy: -1", "lambda_energy"),
    (TrainConfig, "learning_rate: 1", "unknown key 'learning_rate'"), (TrainConfig, "threads: 99999", "threads"),
    (TrainConfig, "amp: perhaps", "amp"), (TrainConfig, "random_rotate_mode: all", "random_rotate_mode"),
    (LearnConfig, "learn_replicas: 0", "learn_replicas"), (LearnConfig, "hole_kT: 0", "hole_kT"),
    (LearnConfig, "max_true_calls: none", "max_true_calls"), (LearnConfig, "round_growth: -1", "round_growth"),
]
SMILES = [  # SMILES, charge, multiplicity, words
    ("C1CC", None, None, "cannot be read"), ("C(", None, None, "cannot be read"), ("CC)", None, None, "cannot be read"),
    ("[Xx]", None, None, "cannot be read"), ("C=N=N=N=C=C=[", None, None, "cannot be read"),
    ("C(C)(C)(C)(C)C", None, None, "no possible molecule"), ("c1cccc1", None, None, "no possible molecule"),
    ("F=F", None, None, "no possible molecule"), ("*", None, None, "dummy"), ("C*", None, None, "dummy"),
    ("C.C", None, None, "fragments"), ("[Na+].[Cl-]", None, None, "fragments"), ("", None, None, "no atoms"),
    ("[CH3]", None, None, "radical"), ("[OH]", None, None, "state multiplicity=2"), ("C", 1, None, "contradicts"),
    ("[NH4+]", 0, None, "contradicts"), ("C", None, 2, "impossible"), ("C", None, 0, "impossible"),
    ("C", None, -1, "impossible"), ("C", None, 99, "impossible"), ("[CH3]", None, 1, "impossible"),
]
LINES = [
    ("CCO", "has no name"), ("CCO ../x", "cannot be a folder name"), ("CCO a/b", "cannot be a folder name"),
    ("CCO -rf", "cannot be a folder name"), ("CCO $(reboot)", "cannot be a folder name"),
    ("CCO con", "cannot be a folder name"), ("CCO " + "x" * 101, "characters"), ("CCO a b", "unexpected 'b'"),
    ("CCO a charge=x", "whole number"), ("CCO a charge=", "whole number"), ("CCO a charge=1.5", "whole number"),
    ("CCO a charge=" + 5000 * "9", "whole number"), ("CCO a chrge=1", "did you mean 'charge'"),
    ("CCO a\nCCC a", "already used in line 1"), ("# nothing", "holds no molecule"), ("\n\n", "holds no molecule"),
]
NAMES = ["../x", "/x", "a/b", "a\\b", "", ".", "..", "-x", ".x", "CON", "nul", "metadata.json", "x" * 101, "a b", "a\n",
         "a\0", "caf\u00e9", "$HOME", "a;b", "~", 3, None, ["a"]]
NUMBERS = [
    (flags.positive_int, "0"), (flags.positive_int, "-1"), (flags.positive_int, "1.5"), (flags.positive_int, "x"),
    (flags.positive_int, str(2**40)), (flags.positive_int, "9" * 5000), (flags.non_negative_int, "-1"),
    (flags.non_negative_int, ""), (flags.positive_float, "0"), (flags.positive_float, "nan"),
    (flags.positive_float, "inf"), (flags.positive_float, "1e999"), (flags.non_negative_float, "-0.1"),
    (flags.non_negative_float, "one"),
]
ASSIGNMENTS = ["dt_fs", "=1", " =1", "dt_fs=[1", "dt_fs={a", "dt_fs=!!python/name:os.system",
               "dt_fs=" + "9" * 5000, "dt_fs=2026-99-99", "dt_fs=" + "[" * 3000, "x" * 5000]
SPLITS = [None, 3, "ethanol", [], {}, {"molecules": 3}, {"molecules": ["ethanl"]}, {"molecules": [3]},
          {"molecules": ["ethanol"], "blocks": "all"}, {"molecules": ["ethanol"], "blocks": [-1.5]},
          {"molecules": ["ethanol"], "more": 1}]
JSON_FILES = ["", "{", "{'a': 1}", "\xff", "NaN nonsense"]


def refused(words, call):
    with pytest.raises(UserError) as refusal:
        call()
    sentence = str(refusal.value)
    assert words in sentence and "\n" not in sentence and "delete" not in sentence and len(sentence) < 1000, sentence


def short(value):
    """A test's name: the same in every process, so no address of an object is in it."""
    return getattr(value, "__name__", repr(value))[:40]


@pytest.mark.parametrize("kind, text, words", YAML, ids=short)
def test_of_yaml(tmp_path, kind, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    refused(words, lambda: load_qm_config(path) if kind == "qm" else load_config(kind, path))


@pytest.mark.parametrize("smiles, charge, multiplicity, words", SMILES, ids=short)
def test_of_smiles(smiles, charge, multiplicity, words):
    refused(words, lambda: parse_smiles(smiles, charge, multiplicity))


@pytest.mark.parametrize("text, words", LINES, ids=short)
def test_of_lines_of_a_smiles_file(tmp_path, text, words):
    path = tmp_path / "x.smi"
    path.write_text(text)

    def read():
        for problem in read_smiles_file(path)[1]:
            raise UserError(problem)

    refused(words, read)


@pytest.mark.parametrize("name", NAMES, ids=short)
def test_of_names(name):
    refused("name", lambda: check_name(name))


@pytest.mark.parametrize("kind, text", NUMBERS, ids=short)
def test_of_numbers_in_flags(kind, text):
    with pytest.raises(flags.argparse.ArgumentTypeError, match="is not a"):
        kind(text)


@pytest.mark.parametrize("text", ASSIGNMENTS, ids=short)
def test_of_assignments(text):
    refused("--set", lambda: parse_assignments([text]))


@pytest.mark.parametrize("split", SPLITS, ids=short)
def test_of_splits(split):
    arrays = {"molecule_id": np.zeros(3, int), "block": np.arange(3)}
    refused("", lambda: select(arrays, {"molecules": [{"name": "ethanol"}]}, split))


@pytest.mark.parametrize("text", JSON_FILES, ids=short)
def test_of_json(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    refused("not valid JSON", lambda: read_json(tmp_path / "x.json"))


@pytest.mark.parametrize("read", [load_trajectory, load_dataset, Molecule.load])
@pytest.mark.parametrize("content", [
    b"", b"PK", b"PK\3\4" + bytes(40), b"PK\5\6" + bytes(18), b"\x93NUMPY\1\0", b"\x80\4K\1."], ids=short)
def test_of_files_that_are_none(tmp_path, read, content):
    (tmp_path / "x.npz").write_bytes(content)
    refused("x.npz", lambda: read(tmp_path / "x.npz"))


@pytest.mark.parametrize("arrays", [
    {"a": np.zeros(2)}, {"metadata": np.array("[1]")}, {"metadata": np.array("{")}, {"metadata": np.zeros(3)},
    {"metadata": np.array('{"schema": "trajectory"}')}, {"metadata": np.array(json.dumps({"schema": "dataset"}))},
    {"metadata": np.array(json.dumps({"schema": "trajectory", "schema_version": 1}))},
    {"metadata": np.array(json.dumps({"schema": "dataset", "schema_version": 1, "molecules": [{"name": "../x"}]}))},
], ids=short)
@pytest.mark.parametrize("read", [load_trajectory, load_dataset, Molecule.load])
def test_of_files_of_another_kind(tmp_path, read, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    refused("x.npz", lambda: read(tmp_path / "x.npz"))
