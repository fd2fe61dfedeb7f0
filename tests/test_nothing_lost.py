"""What is on disk is safe: damage is found, nothing is replaced unasked, and a resumed run is the run that began."""

import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

import kstep
import synthetic
from conftest import ROOT
from kstep import npz
from kstep.analysis.evaluate import find_trajectories
from kstep.cli.program import log_beside
from kstep.config import BaselineConfig, load_config
from kstep.errors import UserError, sentence_of
from kstep.files import Claim, previous_of, replacing
from kstep.fingerprint import changes, check_same
from kstep.forces import physics_spec
from kstep.forces.tblite import QMConfig
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.models.seal import opened, sealed
from kstep.molecules.prepare import prepare_molecule
from kstep.npz import read_npz
from kstep.outputs import check_no_input, set_aside
from kstep.runs.production import Production
from kstep.runs.recorder import TrajectoryWriter, read_restart, reopen, write_restart
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.state import State
from kstep.stages.physics import load_physics, open_physics
from springs import write_trajectory

MM = {"platform": "Reference", "temperature_K": 300.0}
SHORT = dict(scheme="plain", dt_fs=0.5, replicas=2, workers=1, burn_in_steps=0, save_interval_steps=1,
             checkpoint_interval=2, seed=3)


@pytest.fixture(scope="module")
def water():
    return prepare_molecule("water", "O").molecule


@contextmanager
def no_file_larger_than(n_bytes):
    """A disk that is full: writing further ends with an OSError, as Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flipped(data, rng):
    bits = bytearray(data)
    where = int(rng.integers(8 * len(bits)))
    bits[where // 8] ^= 1 << where % 8
    return bytes(bits)


# checkpoints ------------------------------------------------------------------------------------


def a_checkpoint():
    weights = torch.randn(300, generator=torch.Generator().manual_seed(1))
    return {"state_dict": {"w": weights}, "config": ModelConfig().model_dump(), "normalisation": {}, "k_steps": 4,
            "dt_fs": 0.5, "spans": [4, 2], "units": checkpoints.UNITS, "elements": [1], "molecule": None,
            "temperature_K": 300.0, "method": "m", "data_sha256": "", "true_calls_training": 0}


def test_no_flipped_bit_of_a_checkpoint_is_accepted(tmp_path):
    path, rng = tmp_path / "c.pt", np.random.default_rng(1)
    checkpoints.save(path, a_checkpoint())
    good = path.read_bytes()
    assert torch.equal(checkpoints.load(path)["state_dict"]["w"], a_checkpoint()["state_dict"]["w"])
    for _ in range(200):
        path.write_bytes(flipped(good, rng))
        with pytest.raises(UserError):
            checkpoints.load(path)
    assert torch.load(io.BytesIO(good), weights_only=True)["method"] == "m"  # anybody's reader passes the seal over


def test_a_checkpoint_of_before_checksums_is_read_with_a_warning(tmp_path, caplog):
    torch.save(a_checkpoint(), tmp_path / "old.pt")
    with caplog.at_level(logging.WARNING, "kstep"):
        checkpoints.load(tmp_path / "old.pt")
        checkpoints.load(tmp_path / "old.pt")
    assert [r.message.count("holds no checksum") for r in caplog.records] == [1]


def test_a_seal_belongs_to_its_archive():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("a", "b")
    data = archive.getvalue()
    assert opened(sealed(data)) == (data, True) and opened(data) == (data, False)
    for broken in (sealed(data)[:-1], sealed(data) + b"x", data[:4] + b"\1" + sealed(data)[5:]):
        with pytest.raises(ValueError, match="checksum"):
            opened(broken)


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    for steps in (1, 2):
        checkpoints.save(tmp_path / "last.pt", {**a_checkpoint(), "true_calls_training": steps}, keep_previous=True)
    assert checkpoints.load_last_whole(tmp_path / "last.pt")["true_calls_training"] == 2
    damage(tmp_path / "last.pt")
    with caplog.at_level(logging.WARNING, "kstep"):
        assert checkpoints.load_last_whole(tmp_path / "last.pt")["true_calls_training"] == 1
    assert "going on from the one before it" in caplog.text
    damage(tmp_path / "last.previous.pt")
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_last_whole(tmp_path / "last.pt")


# files ------------------------------------------------------------------------------------------


def damage(path):
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order, rename, sync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("rename"), rename(*a)))
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle)))
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("whole")
    assert order == ["sync", "rename", "sync"]


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    before = (tmp_path / "x.npz").read_bytes()
    with no_file_larger_than(1000), pytest.raises(OSError, match="cannot be written") as failure:
        npz.write_npz(tmp_path / "x.npz", {"a": np.zeros(1000)})
    assert sentence_of(failure.value) == f"{tmp_path / 'x.npz'}: cannot be written (File too large)"
    with no_file_larger_than(1000), pytest.raises(OSError, match="cannot be written") as failure:
        checkpoints.save(tmp_path / "c.pt", a_checkpoint())
    assert failure.value.filename == str(tmp_path / "c.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"] and (tmp_path / "x.npz").read_bytes() == before


def test_a_full_disk_stops_no_log_and_is_said_of_a_guess(water, tmp_path, capsys, monkeypatch):
    log = logging.getLogger("kstep")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # of commands that ran in this process before
    with no_file_larger_than(300), log_beside(tmp_path / "x.npz"):
        for _ in range(20):
            log.warning("as long as this")
    assert (tmp_path / "x.npz.log").stat().st_size == 300 and "Logging error" not in capsys.readouterr().err
    physics = physics_spec(water, QMConfig(), warm_start=True).build()
    physics.energy(water.conformers[0])
    whole = physics.history(0)
    with no_file_larger_than(300), pytest.raises(OSError, match="is the disk full") as failure:
        physics.history(0)
    assert len(whole) > 300 and "kstep-tblite-" in sentence_of(failure.value)


def test_one_process_at_a_time_writes_into_a_folder(tmp_path):
    with Claim(tmp_path / "f", "x.npz"), pytest.raises(UserError, match="another run is writing x.npz"):
        Claim(tmp_path / "f", "x.npz")
    with Claim(tmp_path / "f", "x.npz"):
        (tmp_path / "f/kept").touch()
    assert (tmp_path / "f/kept").exists()


def test_what_another_process_is_writing_is_not_set_aside(water, tmp_path):
    """Its restart files would go on under the old name, into the folder of the run that comes now."""
    out, parts = tmp_path / "x.npz", tmp_path / "x.npz.parts"
    with Claim(parts, out):
        (parts / "checkpoint.npz").write_text("theirs")
        with pytest.raises(UserError, match="another run is writing .*x.npz; wait for it, or choose another output"):
            run(water, out, overwrite=True)
        assert os.listdir(tmp_path) == [parts.name] and os.listdir(parts) == ["checkpoint.npz"]
    assert set_aside(out, ".parts") == tmp_path / "x.npz.backup-1"
    assert os.listdir(tmp_path) == ["x.npz.backup-1.parts"]


def test_what_is_set_aside_can_be_put_back(tmp_path):
    for round_ in (1, 2):
        (tmp_path / "x.npz").write_text(f"file {round_}")
        (tmp_path / "x.npz.parts").mkdir()
        (tmp_path / "x.npz.parts/chunk_00000.npz").write_text(f"chunk {round_}")
        assert set_aside(tmp_path / "x.npz", ".parts", ".learn") == tmp_path / f"x.npz.backup-{round_}"
    assert set_aside(tmp_path / "x.npz", ".parts", ".learn") is None
    assert {p.name for p in tmp_path.iterdir()} == {f"x.npz.backup-{n}{end}" for n in (1, 2) for end in ("", ".parts")}
    assert (tmp_path / "x.npz.backup-1").read_text() == "file 1"
    assert (tmp_path / "x.npz.backup-2.parts/chunk_00000.npz").read_text() == "chunk 2"


def test_an_output_that_is_an_input_is_refused_however_it_is_written(tmp_path):
    (tmp_path / "a.learn").mkdir()
    (tmp_path / "a.npz").touch()
    (tmp_path / "link.npz").symlink_to(tmp_path / "a.npz")
    for out, read in ((tmp_path / "a.npz", tmp_path / "a.learn/../a.npz"), (tmp_path / "a.npz", tmp_path / "link.npz"),
                      (tmp_path / "a.learn", tmp_path / "a.learn/labels.npz")):
        with pytest.raises(UserError, match="--labels .* would be overwritten"):
            check_no_input([out], {"--labels": read, "--checkpoint": None})
    check_no_input([tmp_path / "a.npz"], {"--labels": tmp_path / "a.npz.learn/labels.npz"})


# fingerprints -----------------------------------------------------------------------------------


def test_changes_are_named_with_both_values():
    written = {"seed": 1, "physics": {"charge": 0, "masses": [16.0, 1.0]}, "old": 3}
    asked = {"seed": 1, "physics": {"charge": 1, "masses": (16.0, 2.0), "more": {}}, "new": 4}
    assert changes(written, asked) == ["physics.charge was 0 and is 1", "physics.masses.1 was 1.0 and is 2.0",
                                       "physics.more was not there and is {}"]
    assert changes(written, {"physics": written["physics"]}) == []


def test_a_key_that_another_version_did_not_know_is_no_change_where_it_does_nothing():
    run = {"hybrid": {"k": 4}, "ladder": [1.0, None]}
    assert changes(run, {"hybrid": {"k": 4, "delayed_steps": None}}) == []
    assert changes({"hybrid": {"k": 4, "gone": None}}, run) == [] != changes(run, {"ladder": [1.0]})
    with pytest.raises(UserError, match="keep_species was not there and is true.*, as by another version of kstep, "
                                        "which could go on with it; use the same"):
        check_same("x was started", run, {"hybrid": {"k": 4, "keep_species": True}}, "use the same ones")
    with pytest.raises(UserError, match=r"\(hybrid.k was 4 and is 5\); use the same"):
        check_same("x was started", run, {"hybrid": {"k": 5}}, "use the same ones")


def test_what_an_earlier_version_did_not_write_is_said_aloud(caplog):
    with caplog.at_level(logging.WARNING, "kstep"):
        check_same("x was started", {"seed": 1}, {"seed": 1, "physics": {}}, "")
    assert "did not write down its physics" in caplog.text


@pytest.mark.parametrize("change, words", [
    ({"charge": 1}, "settings.charge was 0 and is 1"),
    ({"spin_multiplicity": 3}, "settings.multiplicity was 1 and is 3"),
    ({"electronic_temperature_K": 900.0}, "electronic_temperature_K was 300.0 and is 900.0"),
    ({"accuracy": 1.0}, "accuracy was 0.1 and is 1.0"),
    ({"method": "GFN1-xTB"}, "method was GFN2-xTB and is GFN1-xTB"),
], ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "")
def test_all_that_makes_the_energy_surface_is_in_the_fingerprint(water, change, words):
    before, after = (physics_spec(water, QMConfig(**keys)).fingerprint for keys in ({}, change))
    assert any(words in entry for entry in changes({"physics": before}, {"physics": after}))
    heavy = replace(water, masses=water.masses * [1, 2, 1])
    assert changes(before, physics_spec(heavy, QMConfig()).fingerprint) == ["masses.1 was 1.008 and is 2.016"]


# a run ------------------------------------------------------------------------------------------


def run(molecule, out, *, steps=8, cut=None, physics=MM, **more):
    """A short plain run; cut: macro-steps until a Ctrl-C."""
    with pytest.MonkeyPatch.context() as patch:
        take_in = Production._take_in

        def counted(self):
            if self.done == cut:
                raise KeyboardInterrupt
            take_in(self)

        patch.setattr(Production, "_take_in", counted)
        return kstep.sample(molecule, physics, out=out, **{**SHORT, "steps": steps, **more})


@pytest.fixture(scope="module")
def whole(water, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "whole.npz"
    run(water, out)
    return out


@pytest.fixture
def cut(water, tmp_path):
    """A run cut after its third restart file."""
    with pytest.raises(KeyboardInterrupt):
        run(water, tmp_path / "x.npz", cut=7)
    return tmp_path / "x.npz"


def test_multiplicity_and_masses_edited_in_between_are_refused(water, tmp_path):
    xtb, out = {"backend": "tblite"}, tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt):
        run(water, out, physics=xtb, cut=3)
    parts = {p.name: p.read_bytes() for p in (tmp_path / "x.npz.parts").iterdir()}
    heavy = replace(water, masses=water.masses * [1, 2, 1])
    for molecule, physics, words in (
            (water, {**xtb, "spin_multiplicity": 3}, "physics.settings.multiplicity was 1 and is 3"),
            (water, {**xtb, "electronic_temperature_K": 900}, "electronic_temperature_K was 300.0 and is 900.0"),
            (heavy, xtb, "physics.masses.1 was 1.008 and is 2.016")):
        with pytest.raises(UserError, match=words):
            run(molecule, out, physics=physics, resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "x.npz.parts").iterdir()} == parts
    run(water, out, physics=xtb, resume=True, steps=9)  # more of the same is no other physics
    with pytest.raises(UserError, match="multiplicity was 1 and is 3"):  # nor may a finished run change
        run(water, out, physics={**xtb, "spin_multiplicity": 3}, resume=True, steps=9)


def test_a_finished_run_is_the_result_of_the_same_command(water, whole, tmp_path, caplog):
    out = tmp_path / "x.npz"
    shutil.copy(whole, out)
    before = out.read_bytes()
    for resume in (False, True):
        with caplog.at_level(logging.INFO, "kstep"):
            run(water, out, cut=0, resume=resume)  # a first step would be a Ctrl-C
        assert "is finished already; a larger --steps or aim with --resume goes on" in caplog.text
        caplog.clear()
    for more, words in (({"seed": 4}, "seed was 3 and is 4"), ({"steps": 12}, "--resume goes on with it")):
        with pytest.raises(UserError, match=words):
            run(water, out, **more)
    assert out.read_bytes() == before and os.listdir(tmp_path) == ["x.npz"]
    run(water, out, seed=4, overwrite=True)
    assert (tmp_path / "x.npz.backup-1").read_bytes() == before and load_trajectory(out).metadata["seed"] == 4
    assert list(find_trajectories(tmp_path, [])) == [out]  # no report takes a backup for a run
    with pytest.raises(UserError, match="give one of them"):
        run(water, out, resume=True, overwrite=True)


def test_a_network_that_plain_md_does_not_use_is_said_to_be_none(water, tmp_path, caplog):
    run(water, tmp_path / "x.npz", steps=2, network=tmp_path / "network.pt")
    assert f"the network {tmp_path / 'network.pt'} is not used" in caplog.text
    assert load_trajectory(tmp_path / "x.npz").metadata["checkpoint"] is None


def test_a_file_of_plain_md_is_no_run_of_another_version(water, tmp_path):
    out = write_trajectory(tmp_path / "x.npz")
    for resume in (False, True):
        with pytest.raises(UserError, match="x.npz is there already, made by kstep baseline; choose another output"):
            run(water, out, resume=resume)


def test_an_unfinished_run_is_not_started_over_unasked(water, cut, whole):
    with pytest.raises(UserError, match="has not finished; --resume goes on"):
        run(water, cut)
    run(water, cut, resume=True)
    assert np.array_equal(load_trajectory(cut).pos, load_trajectory(whole).pos)


def test_a_run_cut_before_its_first_restart_file_asks_for_no_start_again(water, whole, tmp_path, caplog):
    out = tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt):
        run(water, out, cut=1)
    with caplog.at_level(logging.INFO, "kstep"):
        run(water, out, resume=True)
    replicas = load_trajectory(out).metadata["config"]["replicas"]
    # those of the starts and of the first step
    assert f"{2 * replicas} true calls after the last restart file are known already" in caplog.text
    assert np.array_equal(load_trajectory(out).pos, load_trajectory(whole).pos)
    assert load_trajectory(out).metadata["true_calls"] == load_trajectory(whole).metadata["true_calls"]


def test_a_file_that_is_no_trajectory_is_not_replaced(water, tmp_path):
    for name in ("network.pt", "notes.npz"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match="it is not replaced"):
            run(water, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"


def test_the_starts_of_a_run_are_not_its_output(water, whole, tmp_path):
    shutil.copy(whole, tmp_path / "x.npz")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="--initial-md .* would be overwritten"):
            run(water, tmp_path / "x.npz", start=tmp_path / "x.npz", overwrite=overwrite)
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_damaged_restart_file_gives_way_to_the_one_before(water, cut, whole, caplog):
    damage(cut.with_name("x.npz.parts") / "checkpoint.npz")
    with caplog.at_level(logging.WARNING, "kstep"):
        run(water, cut, resume=True)
    assert "going on from the one before it" in caplog.text
    for key in ("pos", "vel", "Epot", "step", "segment"):
        assert np.array_equal(getattr(load_trajectory(cut), key), getattr(load_trajectory(whole), key)), key
    assert load_trajectory(cut).metadata["true_calls"] == load_trajectory(whole).metadata["true_calls"]


@pytest.mark.parametrize("name", ["checkpoint.npz", "checkpoint.previous.npz"])
def test_a_restart_file_that_is_gone_is_no_beginning(water, cut, whole, name):
    """A kill between the two renames leaves only the one before."""
    (cut.with_name("x.npz.parts") / name).unlink()
    run(water, cut, resume=True)
    assert np.array_equal(load_trajectory(cut).pos, load_trajectory(whole).pos)


def test_two_damaged_restart_files_never_start_it_over(water, cut):
    parts = cut.with_name("x.npz.parts")
    for restart in (parts / "checkpoint.npz", parts / "checkpoint.previous.npz"):
        restart.write_bytes(restart.read_bytes()[:100])
    left = sorted(os.listdir(parts))
    with pytest.raises(UserError, match="and so is the restart file before it; --overwrite begins anew") as failure:
        run(water, cut, resume=True)
    assert "delete" not in str(failure.value) and sorted(os.listdir(parts)) == left
    for restart in (parts / "checkpoint.npz", parts / "checkpoint.previous.npz"):
        restart.unlink()
    with pytest.raises(UserError, match="no restart file"):
        run(water, cut, resume=True)
    assert len(os.listdir(parts)) == len(left) - 2


@pytest.mark.parametrize("harm, word", [(damage, "damaged"), (os.unlink, "missing")])
def test_a_damaged_or_missing_chunk_is_named_at_the_resume(water, cut, harm, word):
    chunk = cut.with_name("x.npz.parts") / "chunk_00001.npz"
    harm(chunk)
    with pytest.raises(UserError, match=f"chunk_00001.npz, a part of this run, is {word}"):
        run(water, cut, resume=True)
    assert not cut.exists()


def test_a_chunk_damaged_while_the_run_goes_on_is_named_at_its_end(tmp_path):
    writer = TrajectoryWriter(tmp_path / "x.npz", masses=np.ones(1), masses_sampler=np.ones(1), atom_types=np.ones(1),
                              bonds=np.zeros((0, 2)), fingerprint={})
    state = State(np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.zeros(1), np.zeros((1, 1, 3)))
    segment = writer.open_segment(0, "train", "NVE", 300.0, 3)
    for _ in range(2):
        writer.add(state, 1.0, 0, segment)
        writer.checkpoint(state, np.random.default_rng(0), {})
    damage(tmp_path / "x.npz.parts/chunk_00000.npz")
    with pytest.raises(UserError, match="chunk_00000.npz, a part of this run, is damaged"):
        writer.finish({"molecule": "x"})
    writer.release()


def test_a_restart_file_keeps_one_generation(tmp_path):
    state = State(np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.zeros(1), np.zeros((1, 1, 3)))
    for step in range(3):
        write_restart(tmp_path / "r.npz", replace(state, step=step), np.random.default_rng(0), {"a": 1}, {})
    assert read_restart(tmp_path / "r.npz", {"a": 1})[0].step == 2
    shutil.copy(previous_of(tmp_path / "r.npz"), tmp_path / "r.npz")
    assert read_restart(tmp_path / "r.npz", {"a": 1})[0].step == 1
    with pytest.raises(UserError, match="a was 1 and is 2"):
        read_restart(tmp_path / "r.npz", {"a": 2})


# plain MD ---------------------------------------------------------------------------------------


def test_plain_md_is_not_made_again_nor_replaced(water, tmp_path, caplog):
    out, xtb = tmp_path / "t.npz", {"backend": "tblite", "equilibration_ps": 0.0, "length_ps": 0.005, "replicas": 1,
                                    "redraw_interval_ps": 0.005}

    def simulate(molecule=water, **more):
        keys = {key: more.pop(key) for key in ("resume", "overwrite", "seed") if key in more}
        return kstep.simulate(molecule, {**xtb, **more}, out=out, workers=1, **keys)

    simulate()
    before = out.read_bytes()
    for resume in (False, True):
        simulate(resume=resume)
        for change, words in (({"spin_multiplicity": 3}, "multiplicity was 1 and is 3"),
                              ({"dt_fs": 0.25}, "dt_fs was 0.5 and is 0.25"), ({"seed": 1}, "seed was 0 and is 1")):
            with pytest.raises(Exception, match=words):
                simulate(resume=resume, **change)
    assert out.read_bytes() == before
    (tmp_path / "t_replica_000.npz.parts").mkdir()  # what a kill leaves after the replicas are joined
    for name in ("t_replica_000.npz", "t_replica_000.npz.parts/chunk_00000.npz", "t.npz.starts"):
        (tmp_path / name).touch()
    simulate()
    assert out.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["t.npz"]
    simulate(overwrite=True, seed=1)
    assert (tmp_path / "t.npz.backup-1").read_bytes() == before and load_trajectory(out).metadata["seed"] == 1
    (tmp_path / "t.npz").unlink()
    (tmp_path / "t_replica_000.npz.parts").mkdir()
    (tmp_path / "t_replica_000.npz.parts/chunk_00000.npz").write_text("frames")
    with pytest.raises(Exception, match="has not finished"):
        simulate()


# what comes from strangers ------------------------------------------------------------------------


def npz_of(path, members):
    """A zip of {array name: (header of an npy file, bytes)}; compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, content) in members.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", header.getvalue() + content)


@pytest.mark.parametrize("name, shape, content, words", [
    ("bomb", (2**23,), bytes(2**26), "unpack to"),
    ("65 TiB", (2**43,), bytes(64), "is said to be"),
    ("below zero", (-8,), bytes(64), "is said to be"),
    ("overflow", (2**62, 2**62), bytes(64), "is said to be"),
])
def test_sizes_are_checked_before_anything_is_read(tmp_path, monkeypatch, name, shape, content, words):
    npz_of(tmp_path / "x.npz", {"pos": (shape, content)})
    monkeypatch.setattr(np, "load", None)  # nothing gets there
    with pytest.raises(UserError, match=words):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("members, words", [({"pos": ((2**23,), bytes(2**26))}, "unpack to"),
                                            ({"pos": ((1,), bytes(8))}, "is no restart file")])
def test_a_restart_file_within_a_trajectory_is_trusted_no_more_than_the_file(tmp_path, members, words):
    npz_of(tmp_path / "restart.npz", members)
    np.savez(tmp_path / "t.npz", restart=np.frombuffer((tmp_path / "restart.npz").read_bytes(), np.uint8),
             metadata=np.array("{}"), step=np.zeros(1))
    with pytest.raises(UserError, match=words):
        reopen(tmp_path / "t.npz")
    assert not (tmp_path / "t.npz.parts").exists()


def test_shapes_are_held_against_the_schema_before_anything_is_read(tmp_path, monkeypatch):
    path = tmp_path / "t.npz"
    synthetic.save(path, synthetic.ethanol(replicas=2, frames=20))
    arrays = read_npz(path)
    np.savez(path, **{**arrays, "vel": np.zeros((10**5, 9, 3))})
    asked = []
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__",
                        lambda self, key, original=np.lib.npyio.NpzFile.__getitem__: (asked.append(key),
                                                                                     original(self, key))[1])
    with pytest.raises(UserError, match="'vel' has shape"):
        load_trajectory(path)
    assert asked == ["metadata"]


@pytest.mark.parametrize("molecule", ["../../evil", "/etc/evil", "a/b", "..", "", 7, None])
def test_names_from_files_are_checked_before_they_become_folders(tmp_path, molecule):
    path = tmp_path / "runs/t.npz"
    path.parent.mkdir()
    synthetic.save(path, synthetic.ethanol(replicas=2, frames=20))
    arrays = read_npz(path)
    metadata = {**json.loads(str(arrays["metadata"])), "molecule": molecule}
    np.savez(path, **{**arrays, "metadata": np.array(json.dumps(metadata))})
    with pytest.raises(UserError, match="cannot be a folder name"):
        load_trajectory(path)
    problems = []
    assert find_trajectories(path.parent, problems) == {} and "cannot be a folder name" in problems[0]


def test_an_evaluation_replaces_only_its_own_report(tmp_path):
    from kstep.analysis.evaluate import evaluate

    synthetic.save(tmp_path / "t.npz", synthetic.ethanol(replicas=2, frames=20))
    for name, content in (("metrics.json", '{"mine": 1}'), ("report.html", "mine")):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UserError, match="no evaluation wrote it"):
            evaluate(tmp_path / "t.npz", tmp_path, folder)
        assert (folder / name).read_text() == content


# weights of no use ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(water, tmp_path_factory):
    """Two networks for water on its force field: one that knows it, and one of bonds a hundred times too soft."""
    from kstep.training.label_fit import fit
    from kstep.training.labels import Labels
    from kstep.training.train_config import FitConfig

    physics, folder = open_physics(water, load_physics(None, MM)), tmp_path_factory.mktemp("networks")
    true = physics.spec().build()
    x = water.conformers[0] + 0.004 * np.random.default_rng(0).standard_normal((60, 3, 3))
    energy, forces = map(np.array, zip(*map(true.energy_and_forces, x)))
    model = ModelConfig(arch="pair_mlp", pair_hidden=[16, 16], heads={"energy": True, "jump": False})
    for name, scale in (("good", 1.0), ("soft", 0.01)):
        network = fit(model, water, Labels(x, scale * energy, scale * forces, 300.0), FitConfig(fit_passes=60),
                      method=physics.method, true_calls=60, dt_fs=0.5, temperature_K=300.0, seed=0)
        checkpoints.save(folder / f"{name}.pt", network.checkpoint)
    return folder


@pytest.mark.parametrize("name, useless", [("soft", True), ("good", False)])
def test_a_network_whose_proposals_are_all_refused_is_said_to_be_of_no_use(water, networks, tmp_path, caplog, name,
                                                                           useless):
    with caplog.at_level(logging.WARNING, "kstep"):
        result = run(water, tmp_path / "x.npz", network=networks / f"{name}.pt", scheme="metropolis", k_steps=90,
                     steps=30, replicas=4)
    words = "the weights of this network are of no use here"
    assert (result.metadata["acceptance"] < 0.01) == useless
    assert (words in caplog.text) == useless == any(words in said for said in result.metadata["caveats"])


# every key of the configs -----------------------------------------------------------------------


def others(kind, key, base):
    """Values of a key besides that of `base`, such as the config takes."""
    now = getattr(base, key)
    found = []
    for value in (now + 1 if isinstance(now, int) and not isinstance(now, bool) else None,
                  1.07 * now if isinstance(now, float) else None, True, False, 1, 2, 0.5, 1.5, 310.0, "numpy",
                  "langevin", "none", "GFN1-xTB", "water", "gbsa", "learn", "metropolis", [300.0, 350.0],
                  [{"kind": "distance", "atoms": [0, 1], "centre": 0.1, "k": 50.0}]):
        try:
            config = kind.model_validate({**base.model_dump(), key: value})
        except (ValueError, UserError):
            continue
        if value is not None and getattr(config, key) != now:
            found.append(value)
    return found


def gone_on(molecule, cut, folder, **how):
    """Resume a copy of a cut run: its trajectory, or the sentence that refuses."""
    shutil.copytree(cut.with_name("x.npz.parts"), folder / "x.npz.parts")
    try:
        run(molecule, folder / "x.npz", resume=True, **how)
    except UserError as refusal:
        return str(refusal)
    return load_trajectory(folder / "x.npz")


def same(one, other):
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in ("pos", "vel", "Epot", "segment"))


def tried(molecule, folder, kind, base, how, skip=(), **common):
    """{key: what going on with another value of it ends in}, for every key of a config, and the run that was not cut.

    how(key, value): the keywords of `run` that say so.
    """
    whole = folder / "whole.npz"
    run(molecule, whole, **common)
    with pytest.raises(KeyboardInterrupt):
        run(molecule, folder / "x.npz", cut=7, **common)
    ends = {}
    for key in kind.model_fields.keys() - set(skip):
        for value in others(kind, key, base)[:1]:
            (folder / key).mkdir()
            ends[key] = gone_on(molecule, folder / "x.npz", folder / key, **{**common, **how(key, value)})
    return ends, load_trajectory(whole)


def check_ends(ends, whole, harmless):
    """Refused in words that name the key, or the very run that was not cut."""
    for key, end in ends.items():
        if key in harmless:
            assert not isinstance(end, str) and same(end, whole), (key, end)
        else:
            assert isinstance(end, str) and key in end, (key, end)


def test_every_key_of_hybrid_yaml_that_is_edited_is_refused_or_changes_nothing(water, networks, tmp_path):
    common = dict(scheme="metropolis", network=networks / "good.pt", k_steps=20)
    keys = {key: value for key, value in {**SHORT, **common}.items() if key in HybridConfig.model_fields}
    base = load_config(HybridConfig, "configs/hybrid.yaml", {**keys, "steps": 8})
    ends, whole = tried(water, tmp_path, HybridConfig, base, lambda key, value: {key: value}, ("scheme",), **common)
    longer = ends.pop("steps")
    assert len(ends) > 30 and np.array_equal(longer.Epot[longer.replica == 0][:8], whole.Epot[whole.replica == 0])
    check_ends(ends, whole, {"checkpoint_interval", "inner"})


def test_every_key_of_qm_yaml_that_is_edited_is_refused_or_changes_nothing(water, tmp_path):
    xtb = {"backend": "tblite"}
    ends, whole = tried(water, tmp_path, QMConfig, QMConfig(), lambda key, value: {"physics": {**xtb, key: value}},
                        ("threads", "call_limit_s", "scheduler"), physics=xtb)  # which want workers
    of_plain_md = BaselineConfig.model_fields.keys() - {"temperature_K", "restraints"}
    assert len(ends) > 18
    check_ends(ends, whole, {*of_plain_md, "spin_multiplicity", "relax_starts"})  # 1, as it was: the molecule's own


def test_a_disk_so_full_that_nothing_can_be_said_still_gives_the_exit_code(tmp_path):
    """Standard error is a file on that disk, as in every batch job."""
    said = tmp_path / "said.txt"
    with open(said, "w") as handle:
        done = subprocess.run([sys.executable, "-m", "kstep", "populations", "nothing.npz"], stdout=handle,
                              stderr=handle, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, timeout=120,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)))
    assert done.returncode == 2 and not said.read_text()
