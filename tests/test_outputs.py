"""Where something lies already: an input and what is not theirs is kept by every command that writes, as is its log."""

import json
import logging
from types import SimpleNamespace

import pytest

import synthetic
from kstep.cli import main
from kstep.errors import UserError
from kstep.forces.tblite import QMConfig
from kstep.front import prepare
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import ensure_prepared
from kstep.molecules.smiles import Entry
from kstep.stages.physics import TruePhysics
from kstep.study.benchmark.sections import _check_own


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with conformers, and one with vibrations."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic.save(folder / "run.npz", synthetic.ethanol(replicas=4, frames=300))
    vibrating = synthetic.ethanol(replicas=4, frames=10, spacing_ps=0.0035, drift=0.0, drift_frames=130)
    synthetic.save(folder / "vibrating.npz", vibrating)
    return folder


RESULTS = [
    (("populations", "run.npz", "--out", "p.json"), ["p.json"]),
    (("average", "run.npz", "--distance", "0-2", "--out", "a.json"), ["a.json"]),
    (("spectrum", "vibrating.npz", "--out", "s.json", "s.csv", "s.png"), ["s.json", "s.csv", "s.png"]),
    (("profile", "run.npz", "--torsion", "0-1-2-8", "--out", "f"),
     [f"f/dihedral_0-1-2-8.{ending}" for ending in ("json", "csv", "png")]),
    (("report", "run.npz", "--out", "r.html"), ["r.html"]),
]


@pytest.mark.parametrize("command, written", RESULTS, ids=lambda value: value[0])
def test_a_result_gives_way_to_the_next_and_nothing_else_does(runs, tmp_path, monkeypatch, capsys, command, written):
    monkeypatch.chdir(tmp_path)
    for name in ("run.npz", "vibrating.npz"):
        (tmp_path / name).symlink_to(runs / name)
    for _ in range(2):  # its own earlier result is no obstacle
        assert main([*command]) == 0, capsys.readouterr().err
    assert not list(tmp_path.rglob("*backup*"))
    for path in map(tmp_path.joinpath, written):
        whole = path.read_bytes()
        for mine in (b"mine", b"{}", b'{"mine": 1}', b"\xff\xfe\x00"):
            path.write_bytes(mine)
            assert main([*command]) == 2
            assert "this command did not write it" in capsys.readouterr().err and path.read_bytes() == mine
        path.write_bytes(whole)
    path.write_bytes(b"mine")
    assert main([*command, "--overwrite"]) == 0
    assert path.with_name(f"{path.name}.backup-1").read_bytes() == b"mine" and path.stat().st_size > 100


READS = [
    ("populations", "run.npz", "--out", "run.npz"), ("populations", "run.npz", "--out", "link.npz"),
    ("average", "run.npz", "--radius-of-gyration", "--out", "run.npz"),
    ("average", "run.npz", "--function", "mine.py:f", "--out", "mine.py"), ("report", "run.npz", "--out", "run.npz"),
    ("report", "run.npz", "--baseline", "link.npz", "--out", "link.npz"),
    ("populations", "run.npz", "--relax", "--config", "mine.yaml", "--out", "mine.yaml"),
    ("advise", "water", "--qm-config", "mine.yaml", "--out", "mine.yaml"),
    ("advise", "water", "--checkpoint", "mine.py", "--out", "mine.py"),
    ("benchmark", "water", "--qm-config", "out/physics.yaml", "--set", "accuracy=0.5", "--out-dir", "out"),
]


@pytest.mark.parametrize("command", [*READS, *((*command, "--overwrite") for command in READS
                                               if command[0] != "benchmark")], ids=" ".join)
def test_no_command_writes_over_what_it_reads(runs, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    prepare("O", "water", out=tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "run.npz").write_bytes((runs / "run.npz").read_bytes())
    (tmp_path / "link.npz").symlink_to(tmp_path / "run.npz")
    (tmp_path / "mine.py").write_text("def f(x):\n    return x[:, 0, 0]\n")
    for name in ("mine.yaml", "out/physics.yaml"):
        (tmp_path / name).write_text("backend: tblite\n")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main([*command]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# preparation ------------------------------------------------------------------------------------


def prepared(folder, *flags):
    return main(["prepare", "CO", "--name", "methanol", "--out-dir", str(folder), "--n-conformers", "2", *flags])


def test_a_preparation_is_kept_and_another_one_never_replaces_it(tmp_path, monkeypatch, capsys):
    assert prepared(tmp_path) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("kstep.stages.preparation._prepare", None)  # nothing is made again
        assert prepared(tmp_path) == 0 and "is there already" in capsys.readouterr().err
        for flags, words in ((["--seed", "1"], "seed was 0 and is 1"), (["--charge", "1"], "charge was null and is 1"),
                             (["--force-field", "none"], "force_field was mmff94 and is none"),
                             (["--qm-config", "qm"], "with other settings (qm.")):
            assert prepared(tmp_path, *flags) == 2
            assert words in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert prepared(tmp_path, "--seed", "1", "--overwrite") == 0
    kept = tmp_path / "methanol.backup-1"
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {
        p.name: content for p, content in before.items() if p.parent.name == "methanol"}
    assert json.loads((tmp_path / "metadata.json").read_text())["methanol"]["seed"] == 1


def test_a_preparation_whose_making_nobody_wrote_down_is_compared(tmp_path, capsys):
    ensure_prepared(Entry("methanol", "CO"), tmp_path)  # as plain MD does, with 20 conformers
    for file in ("molecule.npz", "system.xml"):
        assert main(["prepare", "CO", "--name", "methanol", "--out-dir", str(tmp_path)]) == 0
        path, good = tmp_path / "methanol" / file, (tmp_path / "methanol" / file).read_bytes()
        (tmp_path / "metadata.json").write_text("{}")
        if file == "system.xml":
            path.write_bytes(good.replace(b"<System", b"<System mine='1'"))
        else:
            molecule = Molecule.load(path)
            molecule.conformers[0, 0, 0] += 0.01
            molecule.save(path)
        changed = path.read_bytes()
        assert main(["prepare", "CO", "--name", "methanol", "--out-dir", str(tmp_path)]) == 2
        assert "holds another preparation of 'methanol'" in capsys.readouterr().err and path.read_bytes() == changed
        with pytest.raises(UserError, match="choose another folder"):
            prepare("CO", "methanol", out=tmp_path)
        path.write_bytes(good)


# a benchmark ------------------------------------------------------------------------------------


def test_a_benchmark_goes_on_with_the_same_physics_alone(water, tmp_path):
    def plan(**keys):
        return SimpleNamespace(out=tmp_path, physics=TruePhysics(water, QMConfig(**keys)))

    _check_own(plan())
    _check_own(plan(length_ps=7.0, replicas=3, call_limit_s=5.0))  # no other physics
    for keys, words in (({"spin_multiplicity": 3}, "multiplicity was 1 and is 3"),
                        ({"accuracy": 1.0}, "accuracy was 0.1 and is 1.0"),
                        ({"temperature_K": 310.0}, "temperature_K was 300.0 and is 310.0")):
        with pytest.raises(UserError, match=words):
            _check_own(plan(**keys))
    (tmp_path / "table.txt").write_text("mine")
    with pytest.raises(UserError, match="table.txt is there already"):
        _check_own(plan())


# logs -------------------------------------------------------------------------------------------

LONG = [  # command, what does its work, its log
    (("qmmm", "--out", "q.npz"), "kstep.stages.region_sampling.sample_region", "q.npz.log"),
    (("sample", "water", "--out", "s.npz", "--scheme", "plain"), "kstep.stages.sampling.sample", "s.npz.log"),
    (("learn", "water", "--out", "l.npz"), "kstep.stages.sampling.learn_alone", "l.npz.log"),
    (("umbrella", "water", "--restrain", "distance:0-1", "--from", "0.09", "--to", "0.1", "--k", "9", "--out", "u"),
     "kstep.stages.umbrella.run_windows", "u/umbrella.log"),
    (("baseline", "water", "--out", "b"), "kstep.stages.plain_md.run_plain_md", "b/plain_md.log"),
    (("train", "d.npz", "--out-dir", "t"), "kstep.stages.network_training.train_network", "t/training.log"),
    (("prepare", "O", "--name", "w", "--qm-config", "qm", "--out-dir", "p"),
     "kstep.stages.preparation.prepare_all", "p/preparation.log"),
    (("benchmark", "water", "--out-dir", "m"), "kstep.study.benchmark.sections.benchmark", "m/benchmark.log"),
]


@pytest.mark.parametrize("command, work, log", LONG, ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_every_long_command_has_its_log_beside_its_output(tmp_path, monkeypatch, command, work, log):
    monkeypatch.chdir(tmp_path)
    prepare("O", "water", out=tmp_path)

    def ends(*_, **__):
        logging.getLogger("kstep").warning("it has begun")
        raise UserError("and ends in a sentence")

    monkeypatch.setattr(work, ends)
    assert main([*command]) == 2
    lines = (tmp_path / log).read_text().splitlines()
    assert lines[0].endswith("W it has begun") and lines[-1].endswith("E and ends in a sentence")


# runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--checkpoint", "--labels"])
def test_what_learning_goes_on_from_is_read_before_anything_is_renamed(runs, tmp_path, capsys, flag):
    out, broken = tmp_path / "run.npz", tmp_path / "broken"
    out.write_bytes((runs / "run.npz").read_bytes())
    broken.write_bytes(b"broken")
    assert main(["sample", "CCO", "--name", "ethanol", "--learn", "--out", str(out), flag, str(broken),
                 "--overwrite"]) == 2
    assert str(broken) in capsys.readouterr().err and not list(tmp_path.rglob("*backup*"))
