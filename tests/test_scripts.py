"""Every numbered script, run as a user would, on minutes-to-seconds configurations."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, run_program
from kstep.schemas import load_dataset, load_trajectory

FAST_TRAINING = ("--set", "max_epochs=1", "--max-steps", 30)


def script(name, *arguments, expect=0):
    finished = run_program(f"src/{name}", *arguments)
    assert finished.returncode == expect, finished.stdout[-2000:] + finished.stderr[-2000:]
    if expect:
        assert "Traceback" not in finished.stderr
    return finished


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Prepared ethanol, fast QM and MM baselines, datasets, and one trained network of each kind."""
    work = tmp_path_factory.mktemp("pipeline")
    (work / "two.smi").write_text("CCO ethanol\nO water\n")
    script("00_prep_mols.py", "--smiles", work / "two.smi", "--out-dir", work / "raw")
    script("01b_run_qm_baselines.py", "--smiles-file", work / "two.smi", "--molecule", "ethanol", "--raw", work / "raw",
           "--config", "configs/qm_fast.yaml", "--out", work / "qm", "--num-workers", 2,
           "--set", "drift_windows=2", "--set", "drift_length_ps=0.1", "--set", "length_ps=0.2",
           "--set", "hot_length_ps=0.1", "--set", "equilibration_ps=0.05")
    script("01_run_md_baselines.py", "--molecule", work / "raw/ethanol", "--config", "configs/md_fast.yaml",
           "--out", work / "md")
    for root in ("qm", "md"):
        script("02_make_dataset.py", "--md-root", work / root, "--out-root", work / root,
               "--splits-dir", work / root / "splits", "--ks", 4)
        for model, folder in (("model_pair_mlp", "energy"), ("model", "jump")):
            script("04_train.py", "--dataset", work / root / "dataset_k4.npz", "--model-config",
                   f"configs/{model}.yaml",
                   "--train-config", "configs/train.yaml", "--splits", work / root / "splits/train.json",
                   work / root / "splits/val.json", "--out-dir", work / root / folder, *FAST_TRAINING)
    return work


def calls_without_starts(run):
    """True calls of a run besides those that relaxed its starts."""
    return run.metadata["true_calls"] - run.metadata.get("starts", {}).get("true_calls", 0)


def hybrid(work, level, scheme, out, *flags, expect=0):
    name, config = (("06b_hybrid_integrate_qm.py", ("--qm-config", "configs/qm_fast.yaml")) if level == "qm" else
                    ("06_hybrid_integrate.py", ("--md-config", "configs/md_fast.yaml")))
    checkpoint = () if scheme == "plain" else (
        "--checkpoint", work / level / ("jump" if scheme == "jump" else "energy") / "best.pt")
    return script(name, *config, *checkpoint, "--molecule", work / "raw/ethanol", "--scheme", scheme, "--out", out,
                  "--replicas", 4, "--num-workers", 1, *flags, expect=expect)  # more take seconds to start


def test_preparation_writes_what_it_names(work):
    for name in ("molecule.npz", "structure.pdb", "system.xml"):
        assert (work / "raw/ethanol" / name).is_file()
    assert set(json.loads((work / "raw/metadata.json").read_text())) == {"ethanol", "water"}


@pytest.mark.parametrize("level", ["qm", "md"])
def test_baseline_holds_velocity_verlet_stretches_of_the_right_kind(work, level):
    trajectory = load_trajectory(work / level / "ethanol/trajectory.npz")
    roles = {s["role"] for s in trajectory.segments}
    assert {"equil", "train", "hot"} <= roles
    assert set(np.unique(trajectory.replica)) == {0, 1}
    assert trajectory.metadata["true_calls"] >= trajectory.step.max() * 2
    dt = trajectory.metadata["dt_fs"] * 1e-3
    checked = 0
    for index, segment in enumerate(trajectory.segments):
        rows = np.flatnonzero(trajectory.segment == index)
        if segment["ensemble"] != "NVE" or len(rows) < 3:
            continue
        assert (np.diff(trajectory.step[rows]) == 1).all()
        x, v, f = trajectory.pos[rows], trajectory.vel[rows], trajectory.forces[rows]
        a = f / trajectory.masses[:, None]
        assert np.abs(x[1:] - x[:-1] - dt * v[:-1] - 0.5 * dt**2 * a[:-1]).max() < 1e-7
        assert np.abs(v[1:] - v[:-1] - 0.5 * dt * (a[1:] + a[:-1])).max() < 1e-4
        assert np.ptp(trajectory.Etot[rows]) < 8.0
        checked += 1
    assert checked >= 4


def test_drift_windows_are_recorded(work):
    trajectory = load_trajectory(work / "qm/ethanol/trajectory.npz")
    assert sum(s["role"] == "drift" for s in trajectory.segments) == 4
    assert len(trajectory.frames_of("drift")) == 4 * 201


@pytest.mark.parametrize("level", ["qm", "md"])
def test_hybrids_and_their_evaluation(work, level):
    out = work / level / "hybrid"
    hybrid(work, level, "metropolis", out / "metropolis.npz", "--steps", 12, "--burn-in-steps", 2, "--k-steps", 20,
           "--num-workers", 2)
    hybrid(work, level, "jump", out / "jump.npz", "--steps", 12, "--burn-in-steps", 2,
           "--initial-md", work / level / "ethanol/trajectory.npz")
    hybrid(work, level, "plain", out / "plain.npz", "--steps", 12, "--burn-in-steps", 2,
           "--initial-md", work / level / "ethanol/trajectory.npz", "--frame", -1)
    metropolis, jump, plain = (load_trajectory(out / f"{n}.npz") for n in ("metropolis", "jump", "plain"))
    assert calls_without_starts(metropolis) == 4 * (14 + 1) == calls_without_starts(plain)
    assert calls_without_starts(jump) == 4 + jump.attempts.sum()
    assert jump.metadata["jump_fs"] == 4 * jump.metadata["dt_fs"]
    assert 0 <= metropolis.metadata["acceptance"] <= 1 and np.isfinite(metropolis.delta_H[metropolis.accepted]).all()
    assert jump.metadata["true_calls_training"] > 0
    name, flag = ("05b_eval_qm.py", "--hybrid") if level == "qm" else ("05_eval_drift_rdfs.py", "--hybrid-runs")
    finished = script(name, "--baseline", work / level, flag, out, "--out-dir", work / level / "eval")
    assert "metropolis.npz" in finished.stdout
    metrics = json.loads((work / level / "eval/metrics.json").read_text())
    assert metrics
    page = (work / level / "eval/report.html").read_text()
    assert "data:image/png;base64" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("level", ["qm", "md"])
def test_impulse_and_checked_run_stop_and_are_reported(work, level):
    out = work / level / "respa"
    common = ("--steps", 12, "--burn-in-steps", 2, "--thermostat", "none",
              "--initial-md", work / level / "ethanol/trajectory.npz")
    hybrid(work, level, "impulse", out / "impulse.npz", *common)
    hybrid(work, level, "impulse", out / "projected.npz", *common, "--project-residual", "--k-steps", 8, "--dt-fs", 0.5)
    finished = hybrid(work, level, "checked", out / "checked.npz", *common, "--k-steps", 4,
                      "--set", "max_force_rmse_kJ_per_mol_A=0.001")
    assert "stopped at macro-step" in finished.stderr and "force error" in finished.stderr
    impulse, projected, checked = (load_trajectory(out / f"{n}.npz") for n in ("impulse", "projected", "checked"))
    assert impulse.metadata["jump_fs"] == 2.0 and calls_without_starts(impulse) == 4 * 15
    assert projected.metadata["jump_fs"] == 4.0 and projected.metadata["config"]["project_residual"]
    assert checked.metadata["status"].startswith("stopped at macro-step 5: the force error is")
    assert np.abs(impulse.pos[-4:] - projected.pos[-4:]).max() > 0
    name, flag = ("05b_eval_qm.py", "--hybrid") if level == "qm" else ("05_eval_drift_rdfs.py", "--hybrid-runs")
    finished = script(name, "--baseline", work / level, flag, out, "--out-dir", work / level / "respa_eval")
    for words in ("not symplectic", "ensemble is the network's", "spread of E_true - E_ML", "past tolerance",
                  "energy drift"):
        assert words in finished.stdout, words


def test_model_script_checks_symmetry():
    finished = script("03_model.py", "--model-config", "configs/model.yaml")
    assert "rotation" in finished.stdout


@pytest.mark.parametrize("n_workers", [1, 2])
def test_resumed_hybrid_is_bit_equal(work, n_workers):
    """Interrupted after a restart file, continued, and equal to a run that was not; 2: half-batches in flight."""
    out = work / f"resume{n_workers}"
    out.mkdir()
    whole = out / "whole.npz"
    flags = ("--k-steps", 10, "--burn-in-steps", 2, "--seed", 3, "--set", "checkpoint_interval=4")
    hybrid(work, "qm", "metropolis", whole, "--steps", 10, "--num-workers", n_workers, *flags)
    from kstep.runs import production

    steps = production.macro_steps

    def cut(*arguments, **settings):
        for n, state in enumerate(steps(*arguments, **settings)):
            if n >= 9:
                raise KeyboardInterrupt
            yield state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "macro_steps", cut)
        hybrid(work, "qm", "metropolis", out / "cut.npz", "--steps", 10, "--num-workers", n_workers, *flags, expect=130)
    assert not (out / "cut.npz").exists()
    hybrid(work, "qm", "metropolis", out / "cut.npz", "--steps", 10, "--num-workers", n_workers, "--resume", *flags)
    a, b = load_trajectory(whole), load_trajectory(out / "cut.npz")
    for key in ("pos", "vel", "Epot", "delta_H", "accepted", "step", "segment"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert calls_without_starts(a) == calls_without_starts(b) == 4 * 13
    assert a.metadata["starts"] == b.metadata["starts"] and a.metadata["true_calls"] > 4 * 13
    assert a.metadata["true_calls"] == b.metadata["true_calls"]
    assert a.metadata["tally"] == b.metadata["tally"]


def test_resumed_qm_baseline_is_bit_equal(ethanol, tmp_path):
    from kstep.forces import physics_spec
    from kstep.forces.tblite import QMConfig
    from kstep.runs import baseline as module
    from kstep.runs.baseline_jobs import ReplicaJob, run_replica

    config = QMConfig(equilibration_ps=0.02, length_ps=0.1, redraw_interval_ps=0.025, replicas=1)
    spec = physics_spec(ethanol, config, warm_start=True)
    jobs = {name: ReplicaJob(ethanol, spec, config, 0, 5, tmp_path / f"{name}.npz", name == "cut")
            for name in ("whole", "cut")}
    original = module.run_baseline

    def every_stretch(*args, **kwargs):
        return original(*args, **{**kwargs, "checkpoint_interval_steps": 1})

    import kstep.runs.baseline_jobs as jobs_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs_module, "run_baseline", every_stretch)
        run_replica(jobs["whole"])
        seen = []

        def stop(n):
            seen.append(n)
            if len(seen) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_replica(jobs["cut"], stop)
        kept = json.loads(str(np.load(tmp_path / "cut.npz.parts/checkpoint.npz")["text"]))["progress"]["spent"]
        began = time.process_time()
        result = run_replica(jobs["cut"])
        rest_s = time.process_time() - began
    a, b = (load_trajectory(tmp_path / f"{n}.npz") for n in ("whole", "cut"))
    for key in ("pos", "vel", "forces", "Epot", "segment", "step"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert a.metadata["true_calls"] == result.true_calls > kept["true_calls"] > 0
    assert b.metadata["cpu_s"] == pytest.approx(kept["cpu_s"] + rest_s, rel=0.2) and kept["cpu_s"] > 0.3 * rest_s


def test_workers_end_with_a_killed_run(work, tmp_path):
    """An orphaned worker would keep a core busy and write into the next run's files."""
    run = subprocess.Popen([sys.executable, "src/01b_run_qm_baselines.py", "--smiles-file", str(work / "two.smi"),
                            "--molecule", "ethanol", "--raw", str(work / "raw"), "--config", "configs/qm_fast.yaml",
                            "--out", str(tmp_path / "out"), "--num-workers", "2", "--set", "length_ps=500"],
                           cwd=ROOT, stderr=subprocess.DEVNULL)
    workers = wait_until(lambda: children(run.pid) if len(children(run.pid)) >= 3 else None)  # and a resource tracker
    run.kill()
    run.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers) or None)


def children(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(status.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer is not None:
            return answer
        time.sleep(0.1)
    raise AssertionError("timed out")


def test_dynamics_that_break_leave_what_came_before(work, tmp_path):
    finished = hybrid(work, "qm", "plain", tmp_path / "x.npz", "--dt-fs", 4, "--steps", 400, "--burn-in-steps", 0,
                      "--thermostat", "none", "--initial-md", work / "qm/ethanol/trajectory.npz", expect=3)
    assert "broke at step" in finished.stderr and "are in" in finished.stderr
    trajectory = load_trajectory(tmp_path / "x.npz")
    assert trajectory.metadata["status"].startswith("broke at macro-step") and len(trajectory.pos) > 0


@pytest.mark.parametrize("flags, words", [
    (("--k-steps", 0), "not a whole number >= 1"),
    (("--k-steps", 5), "k = 4 timesteps, not 5"),
    (("--dt-fs", 0.7), "0.5 fs, not 0.7 fs"),
    (("--set", "frictoin_per_ps=3"), "did you mean 'friction_per_ps'"),
    (("--set", "temperature_K=-3"), "temperature_K"),
    (("--frame", 3), "--frame needs --initial-md"),
    (("--initial-md", "nowhere.npz"), "nowhere.npz does not exist"),
    (("--set", "hydrogen_mass_Da=4"), "belongs to metropolis and nested; jump has no use for it"),
    (("--project-residual",), "belongs to impulse; jump has no use for it"),
])
def test_bad_hybrid_input_is_one_sentence(work, tmp_path, flags, words):
    finished = hybrid(work, "qm", "jump", tmp_path / "x.npz", "--steps", 2, *flags, expect=2)
    assert words in finished.stderr
    assert not (tmp_path / "x.npz").exists()


def test_bad_files_are_one_sentence(work, tmp_path):
    whole = (work / "qm/energy/best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    base = ("--qm-config", "configs/qm_fast.yaml", "--molecule", work / "raw/ethanol", "--scheme", "metropolis",
            "--out", tmp_path / "x.npz", "--steps", 1)
    assert "is damaged" in script("06b_hybrid_integrate_qm.py", *base, "--checkpoint", tmp_path / "cut.pt",
                                 expect=2).stderr
    assert "needs a network" in script("06b_hybrid_integrate_qm.py", *base, expect=2).stderr
    other = ("--molecule", work / "raw/water", *base[:2], *base[4:])
    assert "another molecule" in script("06b_hybrid_integrate_qm.py", *other, "--checkpoint",
                                        work / "qm/energy/best.pt", expect=2).stderr
    shutil.copytree(work / "qm/ethanol", tmp_path / "md/ethanol")
    path = tmp_path / "md/ethanol/trajectory.npz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    make = ("--md-root", tmp_path / "md", "--out-root", tmp_path, "--splits-dir", tmp_path / "splits", "--ks", 4)
    assert "truncated" in script("02_make_dataset.py", *make, expect=2).stderr
    path.write_bytes(good)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["pos"][7] = np.nan
    np.savez(path, **arrays)
    assert "NaN" in script("02_make_dataset.py", *make, expect=2).stderr


def test_bad_physics_is_one_sentence(work, tmp_path):
    base = ("--smiles-file", work / "two.smi", "--raw", work / "raw", "--config", "configs/qm_fast.yaml", "--out",
            tmp_path)
    finished = script("01b_run_qm_baselines.py", *base, "--molecule", "ethanl", expect=2)
    assert "did you mean 'ethanol'" in finished.stderr
    finished = script("01b_run_qm_baselines.py", *base, "--molecule", "ethanol", "--set", "charge=1", expect=2)
    assert "charge: 1 of the config contradicts ethanol, whose own is +0" in finished.stderr


def test_dataset_keeps_topology_and_counts(work):
    arrays, metadata = load_dataset(work / "qm/dataset_k4.npz")
    assert metadata["k_steps"] == 4 and metadata["true_calls"] > 0
    assert len(arrays["bonds"]) == 8 and len(arrays["masses"]) == 9
    assert set(arrays["k_steps"]) <= {4, 2, 1}
    assert (ROOT / "configs/train.yaml").is_file()
