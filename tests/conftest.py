"""Analytic systems whose distributions are known, and small molecules, for every test."""

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import contextlib  # noqa: E402
import io  # noqa: E402
import logging  # noqa: E402
import runpy  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from kstep.forces.base import Physics  # noqa: E402
from kstep.forces.pool import Truth  # noqa: E402
from kstep.molecules.molecule import Molecule  # noqa: E402
from kstep.schemes.state import State  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # what benchmarks are made of is tested too


USUAL_LEVEL = logging.getLogger().level
LONGEST = ("test_batch_scripts.py", "test_batch_workers.py", "test_advise.py", "test_benchmark.py", "test_signals.py",
           "test_learn.py", "test_parallel.py", "test_qmmm.py", "test_truth_ladder.py", "test_examples.py",
           "test_gpu_benchmark.py", "test_scripts.py", "test_forces.py", "test_guides.py", "test_species.py",
           "test_dynamics.py", "test_kills.py", "test_real_molecules.py", "test_readme.py", "test_aim.py",
           "test_inner.py", "test_dask_pool.py", "test_models.py", "test_analysis.py", "test_populations.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that none of them keeps one process busy when the others have ended."""
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


class BondPotential(Physics):
    """Sum over bonds of u(r); du gives u'(r).  The true potential of the analytic tests."""

    def __init__(self, masses, bonds, u, du):
        super().__init__(np.full(len(masses), 1), masses)
        self._closest_nm[:] = 0.0
        self.bonds, self.u, self.du = np.asarray(bonds), u, du

    def batch(self, x):
        y = np.moveaxis(x, 0, -1).copy()
        apart, r = self._apart(y)
        return self.u(r).sum(axis=-1), np.moveaxis(self._on_atoms(y, apart, r), -1, 0).copy()

    def forces_replicas_last(self, y):
        """Forces (N,3,R) at y (N,3,R): what an inner loop asks thousands of times."""
        return self._on_atoms(y, *self._apart(y))

    def _apart(self, y):
        apart = [y[i] - y[j] for i, j in self.bonds]
        return apart, np.stack([np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) for d in apart], axis=-1)

    def _on_atoms(self, y, apart, r):
        pull, forces = -self.du(r) / r, np.zeros_like(y)
        for b, (i, j) in enumerate(self.bonds):
            along = pull[:, b] * apart[b]
            forces[i] += along
            forces[j] -= along
        return forces

    def _compute(self, positions, slot):
        energy, forces = self.batch(positions[None])
        return energy[0], forces[0]


class BatchPool:
    """A pool over an analytic potential, evaluated in one array call."""

    def __init__(self, potential):
        self.potential, self.true_calls, self.failures = potential, 0, []

    def evaluate(self, positions, rows=None):
        self.true_calls += len(positions)
        energy, forces = self.potential.batch(positions)
        return Truth(energy, forces, ~np.isfinite(energy))

    def submit(self, positions, rows=None):
        return self.evaluate(positions, rows)

    def collect(self, truth):
        return truth

    def forget(self):
        pass


class ForceNetwork:
    """What a scheme sees of a network, around any force function of (R,N,3)."""

    def __init__(self, forces, jump=None, spans=(4, 2)):
        self.forces = forces
        self.spans = list(spans)
        if jump is not None:
            self.jump = jump

    native = staticmethod(lambda array: np.array(array, dtype=np.float64))
    numpy = staticmethod(lambda array: np.asarray(array))


def start_state(pool, positions, velocities=None):
    truth = pool.evaluate(positions)
    return State(positions.copy(), np.zeros_like(positions) if velocities is None else velocities.copy(),
                 truth.energy, truth.forces)


def molecule_from_smiles(smiles, name, n_conformers=2):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    ids = AllChem.EmbedMultipleConfs(mol, n_conformers, randomSeed=7)
    AllChem.MMFFOptimizeMoleculeConfs(mol)
    return Molecule(
        name, smiles, np.array([a.GetAtomicNum() for a in mol.GetAtoms()]),
        np.array([a.GetMass() for a in mol.GetAtoms()]),
        np.array([sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()]),
        np.array([b.GetBondTypeAsDouble() for b in mol.GetBonds()]),
        np.array([mol.GetConformer(i).GetPositions() * 0.1 for i in ids]), np.zeros(len(ids)),
        Chem.GetFormalCharge(mol), 1)


def pytest_runtest_setup(item):
    """What is marked `cuda` waits for a machine with a GPU."""
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA GPU")


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A program sets up logging for its process; no test finds what another, or the fixture of a module, has set up."""
    root = logging.getLogger()
    root.setLevel(USUAL_LEVEL)
    root.handlers = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]


@pytest.fixture(scope="session")
def ethanol():
    return molecule_from_smiles("CCO", "ethanol")


@pytest.fixture(scope="session")
def water():
    return molecule_from_smiles("O", "water", 1)


def run_python(*arguments, cwd=ROOT, timeout=300):
    """Run a script as a user would; returns the finished process."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=timeout)


def hears_ctrl_c():
    """For Popen's preexec_fn: a shell that is started in the background ignores Ctrl-C, and so does all below it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_here(*arguments, cwd=ROOT):
    """The same as run_python, in this process: what a program says and does, without the seconds that imports take.

    An exception that the program lets through is raised.  What only a process of its own shows (what it needs imported,
    what it leaves behind, signals) is for run_python.
    """
    script, *flags = map(str, arguments)
    said, warned, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # setup_logging closes those it finds, and these are pytest's
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(warned):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [script, *flags])
        patch.syspath_prepend(str((Path(cwd) / script).parent))
        try:
            if script == "-m":
                patch.setattr(sys, "argv", flags)
                runpy.run_module(flags[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            root.handlers, root.level = handlers, level
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), warned.getvalue())


_had_their_process = set()


def run_program(*arguments, cwd=ROOT):
    """run_python for the first run of a script, or of `-m kstep <command>`, by this process; run_here from then on."""
    name = arguments[:3] if arguments[0] == "-m" else arguments[:1]
    run = run_here if name in _had_their_process else run_python
    _had_their_process.add(name)
    return run(*arguments, cwd=cwd)
