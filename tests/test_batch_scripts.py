"""The five batch scripts as a user runs them: plans, two small molecules of which one is broken, bad settings."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT, hears_ctrl_c, run_here
from kstep.cli import main
from kstep.cli.batch.settings import declared
from kstep.cli.batch.stages import STAGES
from kstep.schemas import load_trajectory
from kstep.schemes import SAMPLERS
from kstep.schemes.hybrid_config import HybridConfig
from kstep.study import batch as judging

SCRIPTS = ("run_qm_trajectories.sh", "make_qm_dataset.sh", "train_qm.sh", "run_hybrid_qm.sh", "eval_qm.sh")
TINY = "equilibration_ps: 0.01\nlength_ps: 0.2\nredraw_interval_ps: 0.1\nhot_length_ps: 0.0\nreplicas: 1\n"


def environment(folder, settings):
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH")}
    (folder / "two.smi").write_text("O water\nC[CH2] ethyl\n")  # a radical without its multiplicity: refused
    (folder / "tiny.yaml").write_text(TINY)
    return {**clean, "KSTEP_PYTHON": sys.executable, "OUT_DIR": str(folder / "out"),
            "SMILES_FILE": str(folder / "two.smi"), "QM_CONFIG": str(folder / "tiny.yaml"), **settings}


def batch(script, folder, *arguments, expect=0, **settings):
    finished = subprocess.run(["bash", str(ROOT / script), *arguments], env=environment(folder, settings),
                              capture_output=True, text=True, timeout=600)
    assert finished.returncode == expect, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert "Traceback" not in finished.stderr and "syntax error" not in finished.stderr
    return finished


def batch_here(script, folder, *arguments, expect=0, **settings):
    """The same in this process, without the seconds that imports take; its jobs are processes all the same."""
    name = next(name for name, stage in STAGES.items() if f"{stage.script}.sh" == script)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(folder, settings).items():
            patch.setenv(key, value)
        finished = run_here("-m", "kstep", "batch", name, *arguments)
    assert finished.returncode == expect, finished.stdout[-2000:] + finished.stderr[-2000:]
    return finished


def planned(script, folder, *arguments, **settings):
    """What a dry run says."""
    return batch_here(script, folder, *arguments, **settings, DRY_RUN="1")


def row(finished, task):
    """The cells of a task in the table at the end."""
    line = next(line for line in reversed(finished.stdout.splitlines()) if line.split()[:1] == [task])
    return line.split()[1:]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The first script on water and a molecule that xTB is not given."""
    folder = tmp_path_factory.mktemp("batch")
    return folder, batch("run_qm_trajectories.sh", folder, expect=1, MAX_JOBS="2")


@pytest.mark.parametrize("settings, config", [({}, "train"), ({"CHECKPOINT": "given"}, "train_qm"),
                                              ({"CHECKPOINT": "given", "PER_MOLECULE": "1"}, "train_pair_mlp")])
def test_a_pretrained_network_is_fine_tuned(tmp_path, settings, config):
    (tmp_path / "x.pt").touch()
    given = {key: str(tmp_path / "x.pt") if value == "given" else value for key, value in settings.items()}
    assert f"--train-config configs/{config}.yaml" in planned("train_qm.sh", tmp_path, **given).stdout


@pytest.mark.parametrize("script, command", list(zip(SCRIPTS, ("baseline", "dataset", "train", "sample", "evaluate"))))
def test_a_dry_run_plans_and_leaves_nothing(tmp_path, script, command):
    finished = planned(script, tmp_path)
    commands = [line for line in finished.stdout.splitlines() if line.startswith("$ ")]
    assert commands and all(f"-m kstep {command} " in line for line in commands)
    assert not (tmp_path / "out").exists()
    known = set(run_here("-m", "kstep", command, "--help").stdout.replace(",", " ").split())
    flags = {word for line in commands for word in line.split() if word.startswith("--")}
    assert flags <= known  # every flag it would give is one the stages know


def test_a_hybrid_has_its_controls_at_the_same_calls(tmp_path):
    finished = planned("run_hybrid_qm.sh", tmp_path, MOLECULES="water", K_STEPS="4 8", STEPS="7")
    outs = [line.rsplit("/", 1)[1] for line in finished.stdout.splitlines() if line.startswith("$ ")]
    bare = ["jump_k4_bare.npz", "jump_k8_bare.npz"]
    # k = 8 in one is 4 fs, past what plain MD survives
    assert outs == ["jump_k4.npz", "jump_k8.npz", *bare, "plain.npz", "plain_2fs.npz"]
    assert finished.stdout.count("--steps 7") == 6 and finished.stdout.count("--delta-scale 0 ") == 2


def test_controls_go_without_what_belongs_to_a_scheme(tmp_path):
    (tmp_path / "hybrid.yaml").write_text("tune: true\ntempering_K: [300, 400]\nreplicas: 4\n")
    finished = planned("run_hybrid_qm.sh", tmp_path, MOLECULES="water", SCHEME="metropolis", LEARN="1",
                       HYBRID_CONFIG=str(tmp_path / "hybrid.yaml"))
    ours, plain = [line for line in finished.stdout.splitlines() if line.startswith("$ ")]
    assert "--set" not in ours and "--scheme plain --set tune=null --set tempering_K=null " in plain


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.name)
def test_every_sampler_learns_in_a_batch(tmp_path, kind):
    (tmp_path / "hybrid.yaml").write_text("moves: 4\nnetwork_ladder_K: [300, 400]\n")
    finished = planned("run_hybrid_qm.sh", tmp_path, MOLECULES="water", SCHEME=kind.name, LEARN="1",
                       HYBRID_CONFIG=str(tmp_path / "hybrid.yaml"))
    ours, plain = [line for line in finished.stdout.splitlines() if line.startswith("$ ")]
    assert f"--scheme {kind.name} --k-steps 1000 --learn " in ours
    assert "--scheme plain --set moves=null --set network_ladder_K=null " in plain


@pytest.mark.parametrize("script, flag", [(SCRIPTS[0], "--num-workers 3"), (SCRIPTS[2], "--set threads=3"),
                                          (SCRIPTS[3], "--num-workers 3")])
def test_cores_of_a_job_reach_its_stage(tmp_path, script, flag):
    assert flag in planned(script, tmp_path, THREADS_PER_JOB="3").stdout


def test_one_broken_molecule_stops_no_other(ran):
    folder, finished = ran
    assert row(finished, "water")[0] == "done" and row(finished, "ethyl")[0] == "failed"
    assert "multiplicity=2" in " ".join(row(finished, "ethyl"))
    trajectory = load_trajectory(folder / "out/md/water/trajectory.npz")
    assert f"{trajectory.metadata['true_calls']} true calls" in " ".join(row(finished, "water"))
    assert float(row(finished, "water")[2]) > 0  # CPU seconds
    assert (folder / "out/logs/run_qm_trajectories/ethyl.log").read_text()


def test_what_is_whole_is_skipped_and_what_is_cut_off_is_made_again(ran):
    folder, _ = ran
    result = folder / "out/md/water/trajectory.npz"
    made = result.stat().st_mtime_ns
    again = batch_here("run_qm_trajectories.sh", folder, MOLECULES="water")
    assert row(again, "water")[0] == "skipped" and result.stat().st_mtime_ns == made
    result.write_bytes(result.read_bytes()[:1000])
    again = batch_here("run_qm_trajectories.sh", folder, MOLECULES="water")
    assert row(again, "water")[0] == "done"
    load_trajectory(result)
    assert result.with_name("trajectory.npz.broken").stat().st_size == 1000


def test_an_unfinished_folder_is_not_taken_for_a_result(tmp_path):
    (tmp_path / "out/md/water").mkdir(parents=True)
    finished = planned("run_qm_trajectories.sh", tmp_path, MOLECULES="water")
    assert row(finished, "water")[0] == "planned"


def test_results_of_other_settings_are_neither_taken_nor_overwritten(ran, tmp_path):
    folder, _ = ran
    (tmp_path / "longer.yaml").write_text(TINY.replace("\nlength_ps: 0.2", "\nlength_ps: 0.4"))
    finished = batch_here("run_qm_trajectories.sh", folder, expect=1, MOLECULES="water",
                          QM_CONFIG=str(tmp_path / "longer.yaml"))
    assert "length_ps 0.2, not 0.4" in " ".join(row(finished, "water"))


def test_the_chain_goes_on_with_the_molecules_that_finished(ran):
    """Dataset, network, hybrid, report: water arrives, and the broken molecule fails at every stage."""
    folder, _ = ran
    (folder / "train.yaml").write_text("max_epochs: 1\n")
    (folder / "hybrid.yaml").write_text("burn_in_steps: 1\nreplicas: 2\n")
    given = {"K_STEPS": "4", "STEPS": "6", "TRAIN_CONFIG": str(folder / "train.yaml"),
             "HYBRID_CONFIG": str(folder / "hybrid.yaml"), "DEVICE": "cpu"}
    made = batch("make_qm_dataset.sh", folder, expect=1, **given)
    assert row(made, "all")[0] == "done" and row(made, "ethyl")[0] == "failed"
    assert row(batch("train_qm.sh", folder, **given), "all")[0] == "done"
    hybrid = batch("run_hybrid_qm.sh", folder, expect=1, CONTROLS="0", **given)
    assert row(hybrid, "water")[0] == "done" and row(hybrid, "ethyl")[0] == "failed"
    judged = batch("eval_qm.sh", folder, expect=1, **given)
    table = (folder / "out/eval/table.txt").read_text()
    assert "jump_k4" in table and table.strip() in judged.stdout
    assert row(batch_here("make_qm_dataset.sh", folder, expect=1, **given), "all")[0] == "skipped"
    assert row(batch_here("train_qm.sh", folder, **given), "all")[0] == "skipped"


def test_a_molecule_with_a_network_of_its_own(ran):
    """PER_MOLECULE: impulse with a trained network; LEARN: metropolis with one learned in the run; all are judged."""
    folder, _ = ran
    (folder / "train_own.yaml").write_text("max_epochs: 1\n")
    (folder / "hybrid_own.yaml").write_text("burn_in_steps: 1\nreplicas: 4\n")
    (folder / "learn.yaml").write_text("learn_replicas: 4\nfit_passes: 5\nround_passes: 2\nmax_true_calls: 60\n"
                                       "verify_proposals: 4\n")
    given = {"MOLECULES": "water", "PER_MOLECULE": "1", "STEPS": "4", "OUT_DIR": str(folder / "out"),
             "TRAIN_CONFIG": str(folder / "train_own.yaml"), "HYBRID_CONFIG": str(folder / "hybrid_own.yaml"),
             "LEARN_CONFIG": str(folder / "learn.yaml"), "DEVICE": "cpu"}
    for script, settings in (("make_qm_dataset.sh", {"K_STEPS": "4"}), ("train_qm.sh", {"K_STEPS": "4"}),
                             ("run_hybrid_qm.sh", {"K_STEPS": "4", "SCHEME": "impulse"}),
                             ("run_hybrid_qm.sh", {"K_STEPS": "20", "LEARN": "1", "CONTROLS": "0"})):
        assert row(batch_here(script, folder, **given, **settings), "water")[0] == "done"
    again = batch_here("run_hybrid_qm.sh", folder, **given, K_STEPS="20", LEARN="1", CONTROLS="0")
    assert row(again, "water")[0] == "skipped"  # its own settings are recognised, those that learning chose too
    batch_here("eval_qm.sh", folder, **given)
    table = (folder / "out/eval/table.txt").read_text()
    assert all(name in table for name in ("impulse_k4", "metropolis_k20", "plain", "plain_2fs"))


def hybrid_judged(monkeypatch, wanted, *, status="finished", **found):
    """(found, text) of a run of these settings, at two steps."""
    asked = {"scheme": "metropolis", "k_steps": 1000, **wanted.asked}
    config = {**HybridConfig(**{k: v for k, v in asked.items() if v is not None}, steps=2).model_dump(), **found}
    metadata = {"status": status, "config": config, "scheme": asked["scheme"], "true_calls": 9, "acceptance": 0.9}
    monkeypatch.setattr(judging, "load_trajectory", lambda path: SimpleNamespace(metadata=metadata))
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(judging, "load_config", lambda kind, path, given: kind(**{
        k: v for k, v in given.items() if v is not None}))
    return judging.found([Path("run.npz")], partial(judging.judge_hybrid, wanted=replace(wanted, asked=asked)))


LEARNS = judging.HybridWanted({}, ROOT / "configs/hybrid_fast.yaml", 2, learns=True)
CONTROL = judging.HybridWanted({"scheme": "plain", "k_steps": None}, ROOT / "configs/hybrid_fast.yaml", 2)


def test_what_learning_tunes_is_no_other_setting(monkeypatch):
    """LEARN=1 leaves the timestep to the run, which then writes tune: true and the timestep into its metadata."""
    tuned = dict(tune=True, dt_fs=1.5)
    untuned = replace(LEARNS, asked={"tune": False})
    assert hybrid_judged(monkeypatch, untuned, **tuned) == ("done", "9 true calls, acceptance 0.90")
    assert hybrid_judged(monkeypatch, replace(untuned, learns=False), **tuned)[0] == "other"
    assert hybrid_judged(monkeypatch, untuned, **tuned, length_law="fixed")[0] == "other"


def test_a_control_that_breaks_is_an_answer(monkeypatch):
    """Plain MD of water at 2 fs may blow up: that is what it was run for, and no reason to fail the hybrid."""
    broke = "broke at macro-step 332: the SCF did not converge"
    long = replace(CONTROL, may_break=True)
    assert hybrid_judged(monkeypatch, long, status=broke) == ("done", "broke at macro-step 332")
    assert hybrid_judged(monkeypatch, CONTROL, status=broke)[0] == "broken"
    assert hybrid_judged(monkeypatch, LEARNS, status=broke)[0] == "broken"


def test_ctrl_c_stops_the_jobs(tmp_path):
    (tmp_path / "long.yaml").write_text("length_ps: 1000\nreplicas: 1\n")
    given = environment(tmp_path, {"QM_CONFIG": str(tmp_path / "long.yaml"), "MOLECULES": "water"})
    running = subprocess.Popen(["bash", str(ROOT / SCRIPTS[0])], env=given, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=hears_ctrl_c)

    def jobs():
        pattern = f"kstep baseline.*{tmp_path}/long.yaml"
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True)
        return found.stdout.split()

    until = time.time() + 60
    while not jobs() and time.time() < until:
        time.sleep(0.2)
    assert jobs()
    try:
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=60)
        assert running.returncode == 130 and "stopped" in out
        assert not jobs()
    finally:
        running.kill()
        for job in jobs():
            os.kill(int(job), signal.SIGKILL)


@pytest.mark.parametrize("script, settings, words", [
    (SCRIPTS[0], {"MAX_JOBS": "abc"}, "MAX_JOBS is 'abc'"),
    (SCRIPTS[0], {"MAX_JOBS": "0"}, "MAX_JOBS is '0'"),
    (SCRIPTS[0], {"THREADS_PER_JOB": "-1"}, "THREADS_PER_JOB is '-1'"),
    (SCRIPTS[0], {"DRY_RUN": "yes"}, "DRY_RUN is 'yes'"),
    (SCRIPTS[0], {"QM_CONFIG": "none.yaml"}, "QM_CONFIG is 'none.yaml', which is not a file"),
    (SCRIPTS[0], {"QM_CONFIG": "configs/train.yaml"}, "unknown key"),
    (SCRIPTS[0], {"SMILES_FILE": "none.smi"}, "SMILES_FILE is 'none.smi'"),
    (SCRIPTS[0], {"MOLECULES": "watr"}, "did you mean 'water'"),
    (SCRIPTS[0], {"MOLECULES": "water -h"}, "no name begins with a dash"),
    (SCRIPTS[1], {"K_STEPS": "4 x"}, "K_STEPS is '4 x'"),
    (SCRIPTS[1], {"SPLIT_BY": "molecule", "PER_MOLECULE": "1"}, "PER_MOLECULE=0"),
    (SCRIPTS[2], {"DEVICE": "tpu"}, "DEVICE is 'tpu'; it must be one of auto cpu cuda"),
    (SCRIPTS[2], {}, "run make_qm_dataset.sh first"),
    (SCRIPTS[3], {"CHECKPOINT": "none.pt"}, "CHECKPOINT is 'none.pt', which is not a file"),
    (SCRIPTS[3], {}, "run train_qm.sh first"),
    (SCRIPTS[3], {"SCHEME": "jmp"}, "SCHEME is 'jmp'"),
    (SCRIPTS[3], {"LEARN": "1", "SCHEME": "jump"}, "LEARN=1"),
    (SCRIPTS[3], {"STEPS": "1.5"}, "STEPS is '1.5'"),
])
def test_a_bad_setting_is_one_sentence_before_anything_runs(tmp_path, monkeypatch, capsys, script, settings, words):
    for name, value in environment(tmp_path, settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    assert main(["batch", next(name for name, stage in STAGES.items() if f"{stage.script}.sh" == script)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings, words", [({"KSTEP_PYTHON": "none/python"}, "none/python is not there"),
                                             ({"MAX_JOBS": "abc"}, "MAX_JOBS is 'abc'")])
def test_a_script_passes_on_what_is_wrong(tmp_path, settings, words):
    said = batch(SCRIPTS[0], tmp_path, expect=2, **settings).stderr
    assert words in said and len(said.strip().splitlines()) == 1


def test_a_flag_outdoes_its_variable(tmp_path):
    said = batch(SCRIPTS[0], tmp_path, "--threads-per-job", "3", "--molecules", "water", DRY_RUN="1",
                 THREADS_PER_JOB="2", MOLECULES="ethyl").stdout
    assert "--num-workers 3" in said and "--molecule water" in said and "ethyl" not in said
    assert "--max-jobs is '0'" in batch(SCRIPTS[0], tmp_path, "--max-jobs", "0", expect=2).stderr


@pytest.mark.parametrize("script, name", list(zip(SCRIPTS, STAGES)))
def test_help_names_every_variable_that_is_read(script, name):
    stage = STAGES[name]
    assert stage.script == script.removesuffix(".sh") and f'batch.sh" {name} ' in (ROOT / script).read_text()
    shown = run_here("-m", "kstep", "batch", name, "--help").stdout
    read = {each.name.upper() for each in declared(stage)}
    assert {"MAX_JOBS", "DRY_RUN", "OUT_DIR"} < read
    assert all(f"variable {name};" in " ".join(shown.split()) for name in read)


def test_the_scripts_are_executable_bash():
    for script in (*SCRIPTS, "scripts/batch.sh"):
        assert subprocess.run([shutil.which("bash"), "-n", str(ROOT / script)]).returncode == 0
        assert script.startswith("scripts/") or os.access(ROOT / script, os.X_OK)


def test_a_number_among_the_flags_is_no_dry_run(tmp_path):
    """`--max-jobs 1` in a fresh clone set nothing up, since a 1 anywhere was taken for that of DRY_RUN."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "batch.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup_env.sh").write_text("mkdir -p .venv/bin; ln -s /bin/echo .venv/bin/python\n")

    def answer(**more):
        shutil.rmtree(tmp_path / ".venv", ignore_errors=True)
        return subprocess.run(["bash", "scripts/batch.sh", "sample", "--max-jobs", "1"], cwd=tmp_path, text=True,
                              capture_output=True, env={"PATH": os.environ["PATH"], **more})

    assert answer().stdout.strip() == "-m kstep batch sample --max-jobs 1"
    assert "set KSTEP_PYTHON" in answer(DRY_RUN="1").stderr  # which sets nothing up


@pytest.mark.parametrize("words", [("", "aspirin"), ("--mm", "", "aspirin")])
def test_quickstart_takes_no_empty_smiles_for_ethanol(words):
    finished = subprocess.run(["bash", str(ROOT / "quickstart.sh"), *words], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2 and "the SMILES is empty" in finished.stderr and not finished.stdout
