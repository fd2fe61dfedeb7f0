"""The scripts of examples/slurm, as far as they can be tried without SLURM."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest

from conftest import ROOT

SLURM = ROOT / "examples/slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))

# looked for, not imported: whoever imports it has another handler of Ctrl-C from then on
needs_jobqueue = pytest.mark.skipif(importlib.util.find_spec("dask_jobqueue") is None, reason="no dask-jobqueue")


def environment(tmp_path, **more):
    """One whose `srun`, `python` and `kstep` are here: srun only leaves out its own flags."""
    home = tmp_path / "bin"
    home.mkdir(parents=True)
    for name, text in (("srun", 'while [ "${1:0:1}" = - ]; do shift; done\nexec "$@"'),
                       ("python", f'exec "{sys.executable}" "$@"'), ("kstep", 'exec python -m kstep "$@"')):
        (home / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (home / name).chmod(0o755)
    return {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", **more}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_bash_whose_directives_slurm_knows(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    head = text.partition("set -euo pipefail")[0]  # SLURM reads no directive after the first command
    directives = [shlex.split(line, comments=True) for line in re.findall(r"^#SBATCH (.*)$", text, flags=re.M)]
    assert len(directives) == len(re.findall(r"^#SBATCH", head, flags=re.M)) > 4
    known = r"--(job-name|cpus-per-task|mem|mem-per-cpu|time|signal|output|array)=\S+|--requeue"
    assert all(len(words) == 1 and re.fullmatch(known, words[0]) for words in directives)
    assert "#SBATCH --signal=TERM@" in head and "srun" in text  # so that what is cut short writes where it stands


def test_the_job_array_deals_out_the_whole_list(tmp_path):
    """Every job of the array plans its own molecules, and together they plan each once."""
    names = [f"m{n}" for n in range(5)]
    (tmp_path / "some.smi").write_text("".join(f"C {name}\n" for name in names))
    planned = []
    for number in (1, 2):
        given = environment(tmp_path / str(number), DRY_RUN="1", SLURM_ARRAY_TASK_ID=str(number),
                            SLURM_ARRAY_TASK_COUNT="2", SLURM_CPUS_PER_TASK="4")
        finished = subprocess.run(["bash", str(SLURM / "array.sbatch"), str(tmp_path / "some.smi"), str(tmp_path)],
                                  cwd=ROOT, env=given, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        planned += re.findall(r"--molecule (\w+)", finished.stdout)
    assert sorted(planned) == names


@needs_jobqueue
def test_the_job_of_a_worker_says_what_was_asked_for():
    asked = ["--partition", "long", "--walltime", "12:00:00", "--memory", "3GB", "--directive=--constraint=amd",
             "--prologue", "module load x"]
    lines = subprocess.run([sys.executable, str(SLURM / "cluster.py"), *asked, "--print-job"], capture_output=True,
                           text=True).stdout.splitlines()
    assert {"#SBATCH -p long", "#SBATCH -t 12:00:00", "#SBATCH -n 1", "#SBATCH --cpus-per-task=1",
            "#SBATCH --constraint=amd", "module load x", "export OMP_NUM_THREADS=1"} <= set(lines)
    worker = lines[-1] if lines[-1] else lines[-2]
    assert worker.startswith(f"{sys.executable} -m ") and "tcp://" in worker and "--nthreads 1" in worker
    assert any(re.fullmatch(r"#SBATCH --mem=(3G|2862M)", line) for line in lines)


@needs_jobqueue
@pytest.mark.parametrize("script", ["many_molecules.sbatch", "one_molecule.sbatch"])
def test_the_command_of_a_script_is_given_the_scheduler(tmp_path, script):
    """cluster.py passes --scheduler on, which the command knows, as every flag that the script gives."""
    text = (SLURM / script).read_text()
    command = re.search(r"-- \\\n\s+(kstep (batch \w+|\w+) .*)", text)
    helped = subprocess.run([sys.executable, "-m", "kstep", *command[2].split(), "--help"], capture_output=True,
                            text=True).stdout
    flags = set(re.findall(r"--[\w-]+", command[1])) | {"--scheduler"}
    assert flags <= set(re.findall(r"--[\w-]+", helped)), flags - set(re.findall(r"--[\w-]+", helped))
    echo = subprocess.run([sys.executable, str(SLURM / "cluster.py"), "--", "echo", "given"], capture_output=True,
                          text=True)
    assert re.fullmatch(r"given --scheduler tcp://\S+\n", echo.stdout), echo.stderr
