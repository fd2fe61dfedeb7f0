"""Every command of the guides names scripts, flags, settings and files that exist, and GETTING_STARTED is followed."""

import functools
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, run_here

GUIDES = ["README.md", "GETTING_STARTED.md", "QM_WORKFLOW.md", "QMMM_INTEGRATION.md", "MODELS.md", "ARCHITECTURE.md",
          "CONTRIBUTING.md", "docs/RESULTS.md", "docs/growth.md", "docs/gpu.md", "docs/TROUBLESHOOTING.md",
          "examples/slurm/README.md",
          *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/recipes").glob("*.md"))]
CHAIN = "GETTING_STARTED.md"
ELSEWHERE = {"ruff", "mypy", "mkdocs", "git", "cd", "source", "export", "mkdir", "echo", "printf", "pip", "conda",
             "torchrun", "sbatch", "dask"}
# What makes the commands of CHAIN fast, and leaves them the same commands: (as written, as run).
FASTER = [
    ("bash scripts/setup_env.sh\n", ""),
    ("source .venv/bin/activate\n", ""),
    ("--config configs/qm.yaml", "--config configs/qm_fast.yaml --set length_ps=0.2 --set hot_length_ps=0.1"),
    ("--learn --out", "--learn --learn-config fast_learn.yaml --set tune=false --steps 6 --burn-in-steps 1 "
                      "--replicas 8 --k-steps 50 --num-workers 1 --out"),
    ("--max-steps 4000", "--max-steps 50"),
    ("--k-steps 1000", "--k-steps 50"),
    ("--steps 200", "--steps 20 --replicas 4 --num-workers 1"),
    ("--max-steps 200", "--max-steps 3"),
    ("advise data/raw/ethyl_acetate", "advise data/raw/methanol"),
    ("--samples 10000", "--samples 10 --replicas 8 --pilot-steps 8 --most-cpu 1"),
]
FAST_LEARNING = """bootstrap_labels_per_atom: 4
learn_moves: 2
learn_move_fs: 20
learn_replicas: 8
round_passes: 5
fit_passes: 10
search_steps: 1
verify_proposals: 8
max_true_calls: 60
"""


def blocks(guide):
    return re.findall(r"^```bash\n(.*?)^```", (ROOT / guide).read_text(), flags=re.M | re.S)


def commands(text):
    """The simple commands of a shell text as words, variables set before them included."""
    for line in text.replace("\\\n", " ").splitlines():
        part = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
        lexer.whitespace_split = True
        for word in lexer:
            if word.startswith(">"):
                break  # a file, which need not be there
            if set(word) <= set("&|;"):
                yield part
                part = []
            else:
                part.append(word)
        if part:
            yield part


def cases():
    for guide in GUIDES:
        for block in blocks(guide):
            for words in commands(block):
                yield pytest.param(guide, words, id=f"{guide}-{' '.join(words)[:60]}")


@functools.cache
def help_of(script):
    """What --help says; '' for a script that takes no flags, which --help would run."""
    if not re.search(r"ArgumentParser|make_parser|run_script", (ROOT / script).read_text()):
        return ""
    finished = run_here(script, "--help")
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@functools.cache
def help_of_command(name):
    """What `kstep <name> --help` says."""
    finished = run_here("-m", "kstep", *name.split(), "--help")
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def known_to(words):
    """A `kstep` command, with its stage where it has some, and what its --help says."""
    name = " ".join(words[:2] if words[0] == "batch" else words[:1])
    return f"kstep {name}", help_of_command(name)


@functools.cache
def settings():
    """Every key of every YAML."""
    return {key for path in (ROOT / "configs").glob("*.yaml") for key in yaml.safe_load(path.read_text())}


def check_python(script, words):
    assert (ROOT / script).is_file(), f"{script} does not exist"
    check_flags(script, help_of(script), words)


def check_flags(script, known, words):
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    for flag in flags:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", known), f"{script} has no flag {flag}"
    for flag, value in itertools.pairwise(words):
        if flag == "--set":
            assert value.partition("=")[0] in settings(), f"no YAML has the key of --set {value}"
        choices = re.search(rf"(?<![\w-]){flag} \{{([\w,-]+)\}}", known) if flag.startswith("--") else None
        assert not choices or value in choices[1].split(","), f"{script} {flag} cannot be {value}"


def check_shell(script, variables):
    assert (ROOT / script).is_file(), f"{script} does not exist"
    known = "".join((ROOT / name).read_text() for name in (script, "scripts/batch.sh", "scripts/setup_env.sh"))
    if stage := re.search(r"scripts/batch.sh\" (\w+)", known):
        known += help_of_command(f"batch {stage[1]}")
    for name in variables:
        assert re.search(rf"\b{name}\b", known), f"{script} knows no variable {name}"


@pytest.mark.parametrize("guide, words", list(cases()))
def test_a_command_of_the_guides_can_be_given(guide, words):
    variables = []
    while words and re.match(r"\w+=", words[0]):
        variables.append(words.pop(0).partition("=")[0])
    for word in words:
        if re.match(r"(configs|data|examples|benchmarks)/[\w.-]+\.(yaml|smi|pdb|patch)$", word):
            assert (ROOT / word).is_file(), f"{word} does not exist"
    program, *rest = words
    if program == "python" and not rest[0].startswith("-"):
        check_python(rest[0], rest[1:])
    elif program == "kstep":
        check_flags(*known_to(rest), rest[1:])
    elif program == "bash":
        check_shell(rest[0], variables)
    elif program == "python":
        assert rest[0] in ("-c", "-m"), words
    else:
        assert program in ELSEWHERE, f"{guide}: who is {program}?"


def test_the_check_of_commands_can_fail():
    for bad in (["src/99_nothing.py"], ["src/02_make_dataset.py", "--md-rot", "x"],
                ["src/06b_hybrid_integrate_qm.py", "--scheme", "metroplis"], ["src/04_train.py", "--set", "lrr=1"]):
        with pytest.raises(AssertionError):
            check_python(bad[0], bad[1:])
    for bad in (["sample", "--replicass", "3"], ["sample", "--scheme", "metroplis"], ["sampel"]):
        with pytest.raises(AssertionError):
            check_flags(bad[0], help_of_command(bad[0]), bad[1:])
    with pytest.raises(AssertionError):
        check_shell("train_qm.sh", ["MAX_JOB"])


@pytest.mark.parametrize("guide", GUIDES)
def test_links_and_files_of_the_guides_exist(guide):
    text = re.sub(r"^```diff.*?^```", "", (ROOT / guide).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / guide).parent.joinpath(target).exists(), target
    for name in re.findall(r"(?<![\w/])(?:src|tests|benchmarks|scripts)/[\w./-]+\.(?:py|sh|json)", text):
        assert (ROOT / name).is_file(), name


def test_getting_started_can_be_followed(tmp_path):
    """All its commands, in order, in one shell that stops at the first that fails."""
    text = "\n".join(blocks(CHAIN))
    for written, run in FASTER:
        assert written in text, f"{CHAIN} no longer says {written!r}"
        text = text.replace(written, run)
    for folder in ("src", "configs", "scripts", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "raw"))
    (tmp_path / "fast_learn.yaml").write_text(FAST_LEARNING)
    command = tmp_path / "bin" / "kstep"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kstep "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                   "PYTHONPATH": str(tmp_path / "src")}
    finished = subprocess.run(["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=900)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    for name in ("first/ethanol.npz", "first/network/best.pt", "first/eval/report.html"):
        assert (tmp_path / "outputs" / name).is_file(), name
