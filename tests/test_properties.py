"""What holds for any input: a reader gives what was written, or one sentence; never another exception, or silence."""

import json
import string

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

import synthetic
from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import LONGEST_NAME, RESERVED_NAMES, check_name
from kstep.fingerprint import as_written, changes
from kstep.forces.openmm import MDConfig
from kstep.molecules.smiles import read_smiles_file
from kstep.npz import read_npz
from kstep.runs.recorder import read_restart, write_restart
from kstep.schemas import PER_FRAME, load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.state import State

cheap = settings(max_examples=25, deadline=None, derandomize=True,  # the same examples on every machine
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=8)


def harmed(data, harms):
    """Bytes with some of them changed, cut off after `end` of them (a share)."""
    end, changed = harms
    out = bytearray(data)
    for where, value in changed:
        out[int(where * (len(out) - 1))] = value
    return bytes(out[:max(1, round(end * len(out)))])


HARMS = st.tuples(st.just(1.0) | st.floats(0, 1),
                  st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))


def refuses_in_one_sentence(read):
    """What `read` gives, or None where it answers with one sentence that never advises to delete a file."""
    try:
        return read()
    except UserError as error:
        sentence = str(error)
    assert sentence and "\n" not in sentence and "delete" not in sentence, sentence
    return None


# the schema reader --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "t.npz"
    synthetic.save(path, synthetic.ethanol(replicas=2, frames=6))
    return path.read_bytes(), load_trajectory(path)


@cheap
@given(HARMS)
def test_a_harmed_trajectory_is_refused_or_the_same(trajectory, tmp_path, harms):
    (tmp_path / "t.npz").write_bytes(harmed(trajectory[0], harms))
    found = refuses_in_one_sentence(lambda: load_trajectory(tmp_path / "t.npz"))
    if found is not None:  # a time in the zip's directory, say
        for key in PER_FRAME:
            assert np.array_equal(getattr(found, key), getattr(trajectory[1], key), equal_nan=True), key
        assert found.metadata == trajectory[1].metadata


@cheap
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path, data, as_zip):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04" * as_zip + data)
    assert refuses_in_one_sentence(lambda: read_npz(tmp_path / "x.npz")) is None


@cheap
@given(JSON, st.sampled_from(["segments", "molecule", "dt_fs", "schema_version", "molecules", None]))
def test_any_metadata_is_read_or_refused(trajectory, tmp_path, value, key):
    path = tmp_path / "t.npz"
    path.write_bytes(trajectory[0])
    arrays = read_npz(path)
    metadata = value if key is None else {**json.loads(str(arrays["metadata"])), key: value}
    np.savez(path, **{**arrays, "metadata": np.array(json.dumps(metadata))})
    refuses_in_one_sentence(lambda: load_trajectory(path))


@cheap
@given(st.text(max_size=LONGEST_NAME + 5) | st.text(string.ascii_letters + "./\\-_ ", max_size=12))
def test_a_name_that_passes_stays_in_its_folder(tmp_path, name):
    if refuses_in_one_sentence(lambda: check_name(name) or name) is not None:
        assert (tmp_path / name).resolve().parent == tmp_path.resolve() and len(name) <= LONGEST_NAME
        (tmp_path / name).touch()


# SMILES files -------------------------------------------------------------------------------------


WORDS = st.sampled_from(["CCO", "O", "name", "charge=1", "charge=", "multiplicity=2", "charge=" + 5000 * "9", "#",
                         "C#N", "../x", "charge=\u0663", "\u00a0", "\ufeff"]) | st.text(max_size=6)
LINES = st.lists(st.lists(WORDS, max_size=4).map(" ".join), max_size=6).map("\n".join)


@cheap
@given(LINES | st.text(max_size=60))
def test_any_text_is_a_smiles_file_or_refused(tmp_path, text):
    (tmp_path / "x.smi").write_text(text, encoding="utf-8", errors="surrogatepass")
    found = refuses_in_one_sentence(lambda: read_smiles_file(tmp_path / "x.smi"))
    entries, problems = found or ([], [])
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        check_name(entry.name)
    assert all(problem and "\n" not in problem for problem in problems)


@cheap
@given(st.dictionaries(st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z").filter(
    lambda name: name.lower() not in RESERVED_NAMES),
    st.tuples(st.sampled_from(["CCO", "C#N", "[NH4+]", "C[N+](C)(C)C"]), st.integers(-9, 9) | st.none()), min_size=1,
    max_size=5))
def test_what_was_written_into_a_smiles_file_is_read(tmp_path, molecules):
    (tmp_path / "x.smi").write_text("# all of them\n\n" + "".join(
        f"{smiles}\t{name}" + ("" if charge is None else f" charge={charge}") + " # why\n"
        for name, (smiles, charge) in molecules.items()))
    entries, problems = read_smiles_file(tmp_path / "x.smi")
    assert not problems and {entry.name: (entry.smiles, entry.charge) for entry in entries} == molecules


# YAML ---------------------------------------------------------------------------------------------


@cheap
@given(st.text(max_size=60) | st.dictionaries(st.sampled_from([*MDConfig.model_fields, "dt"]), JSON, max_size=4).map(
    yaml.safe_dump))
def test_any_yaml_is_a_config_or_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    config = refuses_in_one_sentence(lambda: load_config(MDConfig, tmp_path / "c.yaml"))
    if config is not None:
        assert np.isfinite([config.dt_fs, config.temperature_K, config.length_ps, config.replicas]).all()
        assert config.dt_fs > 0 and config.replicas >= 1


@cheap
@given(st.dictionaries(st.sampled_from(sorted(HybridConfig.model_fields)), JSON, max_size=3))
def test_any_settings_are_a_config_or_refused(values):
    refuses_in_one_sentence(lambda: load_config(HybridConfig, None, values))


@cheap
@given(st.text(max_size=30))
def test_any_assignment_is_read_or_refused(text):
    refuses_in_one_sentence(lambda: parse_assignments([text]))


# restart files ------------------------------------------------------------------------------------


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def states(draw):
    r, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    numbers = st.lists(NUMBERS, min_size=r * n * 3, max_size=r * n * 3).map(lambda x: np.reshape(x, (r, n, 3)))
    energy = np.array(draw(st.lists(NUMBERS, min_size=r, max_size=r)))
    return State(draw(numbers), draw(numbers), energy, draw(numbers), draw(st.integers(0, 10**9)))


@cheap
@given(states(), st.integers(0, 2**32), st.dictionaries(st.text(max_size=5), JSON.filter(
    lambda value: "NaN" not in json.dumps(value)), max_size=3))
def test_a_restart_file_gives_back_every_bit(tmp_path, state, seed, progress):
    rng = np.random.default_rng(seed)
    rng.normal(size=seed % 7)
    write_restart(tmp_path / "r.npz", state, rng, {"seed": seed}, progress)
    read, again, text, _ = read_restart(tmp_path / "r.npz", {"seed": seed})
    for key in ("positions", "velocities", "energy", "forces"):
        assert getattr(read, key).tobytes() == getattr(state, key).tobytes(), key
    assert read.step == state.step and text["progress"] == as_written(progress)
    assert np.array_equal(again.normal(size=5), rng.normal(size=5))


@cheap
@given(HARMS)
def test_a_harmed_restart_file_is_refused_or_the_same(tmp_path, harms):
    path = tmp_path / "r.npz"
    state = State(np.arange(6.0).reshape(1, 2, 3), np.ones((1, 2, 3)), np.ones(1), np.zeros((1, 2, 3)), 7)
    write_restart(path, state, np.random.default_rng(0), {"a": 1}, {"done": 3})
    path.write_bytes(harmed(path.read_bytes(), harms))
    path.with_name("r.previous.npz").unlink(missing_ok=True)  # of the example before
    found = refuses_in_one_sentence(lambda: read_restart(path, {"a": 1}))
    if found is not None:
        assert np.array_equal(found[0].positions, state.positions) and found[2]["progress"] == {"done": 3}


@cheap
@given(JSON | st.fixed_dictionaries({"fingerprint": JSON, "rng": JSON, "progress": JSON}, optional={"step": JSON}))
def test_any_text_of_a_restart_file_is_read_or_refused(tmp_path, text):
    frame = np.zeros((1, 1, 3))
    np.savez(tmp_path / "r.npz", positions=frame, velocities=frame, energy=np.zeros(1), forces=frame,
             text=np.array(json.dumps(text)))
    refuses_in_one_sentence(lambda: read_restart(tmp_path / "r.npz", {"a": 1}))


def without_null(value):
    """The same, with no key that is null."""
    if isinstance(value, list):
        return [*map(without_null, value)]
    return {key: without_null(v) for key, v in value.items() if v is not None} if isinstance(value, dict) else value


@cheap
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_changes_are_found_and_only_those(one, other):
    plain = [json.loads(json.dumps(each).replace("NaN", "0")) for each in (one, other)]
    assert changes(plain[0], plain[0]) == []
    both = {key: [each[key] for each in plain] for key in plain[0].keys() & plain[1].keys()}
    if any(json.dumps(without_null(a)) != json.dumps(without_null(b)) for a, b in both.values()):
        assert changes(*plain)
    if all(json.dumps(a) == json.dumps(b) for a, b in both.values()):
        assert not changes(*plain)
