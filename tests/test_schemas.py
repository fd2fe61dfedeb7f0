"""What one stage writes is what the next one reads, bit for bit, and nothing else passes for it."""

import numpy as np
import pytest

from kstep.errors import UserError
from kstep.molecules.molecule import Molecule
from kstep.schemas import (
    _DATASET_FIELDS,
    _TRAJECTORY_FIELDS,
    load_dataset,
    load_trajectory,
    save_dataset,
    save_trajectory,
)

SIZES = {"T": 5, "N": 4, "B": 3, "A": 11, "P": 3, "P+1": 4, "M": 2, "M+1": 3, "L": 7}


def filled(fields, sizes=SIZES):
    """Arrays of every dtype and shape of a schema, no two numbers alike."""
    rng = np.random.default_rng(0)
    arrays = {}
    for key, (dtype, shape) in fields.items():
        size = tuple(s if isinstance(s, int) else sizes[s.removesuffix("|0")] for s in shape)
        arrays[key] = {"f": rng.standard_normal(size), "i": rng.integers(0, 3, size),
                       "b": rng.random(size) < 0.5}[np.dtype(dtype).kind].astype(dtype)
    # what is not free: masses, weights, elements, timestep, offsets, the molecule a window belongs to
    for key in ("masses", "masses_sampler", "weight", "dt_fs"):
        if key in arrays:
            arrays[key] = np.abs(arrays[key]) + 0.1
    arrays["atom_types"] += 1
    arrays.update({key: np.array(offsets) for key, offsets in (
        ("ptr", [0, 4, 8, 11]), ("mol_ptr", [0, 4, 7]), ("bond_ptr", [0, 1, 3]), ("molecule_id", [0, 0, 1]))
        if key in arrays})
    return arrays


SEGMENT = {"replica": 0, "role": "train", "ensemble": "NVE", "temperature_K": 300.0, "n_dof": 9}
RECORD = {"molecule": "naive", "backend": "naïve", "segments": [SEGMENT] * 3, "dt_fs": 0.1, "checkpoint": None,
          "k_steps": 4, "true_calls": 7, "method": "none"}
METADATA = {**RECORD, "none": None, "molecules": [{"name": "a", "smiles": "O", "method": "none"}] * 2}


def test_a_trajectory_comes_back_bit_for_bit(tmp_path):
    arrays = filled(_TRAJECTORY_FIELDS)
    arrays["delta_H"][:2] = np.nan, np.inf  # not a Metropolis step; a diverged proposal
    save_trajectory(tmp_path / "t.npz", arrays, RECORD)
    found = load_trajectory(tmp_path / "t.npz")
    for key, value in arrays.items():
        assert getattr(found, key).dtype == value.dtype
        assert np.array_equal(getattr(found, key), value, equal_nan=value.dtype.kind == "f"), key
    assert {key: found.metadata[key] for key in RECORD} == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]  # no temporary file is left


def test_what_a_plain_run_leaves_out_comes_back_empty(tmp_path):
    arrays = filled(_TRAJECTORY_FIELDS)
    for key in ("forces", "accepted", "attempts", "inner_steps", "delta_H", "weight", "box"):
        del arrays[key]
    save_trajectory(tmp_path / "t.npz", arrays, RECORD)
    found = load_trajectory(tmp_path / "t.npz")
    assert found.forces.shape == (0, 4, 3) and found.accepted.shape == (0,) and found.box.shape == (0, 3, 3)


def test_a_dataset_comes_back_bit_for_bit(tmp_path):
    arrays = filled(_DATASET_FIELDS)
    save_dataset(tmp_path / "d.npz", arrays, METADATA)
    found, metadata = load_dataset(tmp_path / "d.npz")
    assert set(found) == set(arrays)
    for key, value in arrays.items():
        assert found[key].dtype == value.dtype and np.array_equal(found[key], value), key
    assert {key: metadata[key] for key in METADATA} == METADATA


def test_a_molecule_comes_back_bit_for_bit(ethanol, tmp_path):
    ethanol.save(tmp_path / "molecule.npz")
    found = Molecule.load(tmp_path)
    for key, value in vars(ethanol).items():
        assert np.array_equal(getattr(found, key), value), key


@pytest.mark.parametrize("change, words", [
    ({"vel": np.zeros((4, 4, 3))}, "'vel' has shape"),
    ({"pos": np.zeros((5, 4))}, "'pos' has 2 dimensions"),
    ({"step": np.zeros(5)}, "'step' has dtype"),
    ({"Epot": np.full(5, np.nan)}, "'Epot' holds NaN"),
    ({"Epot": np.full(5, np.inf)}, "'Epot' holds NaN or infinity"),
])
def test_arrays_that_do_not_fit_are_named_when_read(change, words, tmp_path):
    from kstep.npz import read_npz, write_npz

    save_trajectory(tmp_path / "t.npz", filled(_TRAJECTORY_FIELDS), RECORD)
    write_npz(tmp_path / "t.npz", {**read_npz(tmp_path / "t.npz"), **change})
    with pytest.raises(UserError, match=words):
        load_trajectory(tmp_path / "t.npz")


def test_one_schema_does_not_pass_for_the_other(tmp_path):
    save_dataset(tmp_path / "d.npz", filled(_DATASET_FIELDS), METADATA)
    with pytest.raises(UserError, match="holds a 'dataset', expected a 'trajectory'"):
        load_trajectory(tmp_path / "d.npz")
    (tmp_path / "t.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:-200])
    with pytest.raises(UserError, match="truncated"):
        load_dataset(tmp_path / "t.npz")


@pytest.mark.parametrize("change, words", [
    ({"true_cals": 7}, "no run records 'true_cals'; did you mean 'true_calls'"),
    ({"true_calls": 7.5}, "true_calls = 7.5"),
    ({"acceptance": "high"}, "acceptance = 'high'"),
    ({"molecule": None}, "molecule = None"),
    ({"segments": [{**SEGMENT, "colour": "red"}]}, "no run records 'segments.0.colour'"),
])
def test_a_record_that_nobody_could_read_is_not_written(change, words, tmp_path):
    with pytest.raises(UserError, match=words):
        save_trajectory(tmp_path / "t.npz", filled(_TRAJECTORY_FIELDS), {**RECORD, **change})
    assert not list(tmp_path.iterdir())


def test_a_file_of_before_the_record_is_read_as_it_is(tmp_path):
    from kstep.npz import read_npz, write_npz
    from kstep.schemas import _pack_metadata

    save_trajectory(tmp_path / "t.npz", filled(_TRAJECTORY_FIELDS), RECORD)
    old = {**RECORD, "masses_sampler": [1.0], "steps": 200}  # a QM/MM run's of version 1.0
    write_npz(tmp_path / "t.npz", {**read_npz(tmp_path / "t.npz"), "metadata": _pack_metadata(old, "trajectory")})
    assert load_trajectory(tmp_path / "t.npz").metadata["steps"] == 200


def test_joined_trajectories_keep_their_replicas_and_segments_apart():
    import synthetic
    from kstep.schemas import join_trajectories

    one, two = synthetic.ethanol(0, 2, 10, scheme="metropolis"), synthetic.ethanol(1, 3, 10)
    two.replica += 100
    for segment in two.segments:
        segment["replica"] += 100
    joined = join_trajectories([one, two])
    assert sorted(set(joined.replica.tolist())) == [0, 1, 2, 3, 4] and len(joined.pos) == len(one.pos) + len(two.pos)
    for trajectory, start in ((one, 0), (two, len(one.pos))):
        for frame in range(len(trajectory.pos)):
            mine, theirs = joined.segments[joined.segment[start
                                                          + frame]], trajectory.segments[trajectory.segment[frame]]
            assert mine == {**theirs, "replica": joined.replica[start + frame]}
    assert len(joined.accepted) == 0 and len(one.accepted) > 0  # plain MD accepts nothing
    assert join_trajectories([one]).accepted.dtype == bool
