"""One's own observables: averaged under weights with the errors of chains; a wrong function is told so."""

import json

import numpy as np
import pytest

import kstep
import synthetic
from kstep.analysis.measure.observables import angle, average, distance, radius_of_gyration
from kstep.analysis.measure.statistics import estimate_means
from kstep.cli import main
from kstep.errors import UserError
from kstep.schemas import load_trajectory
from kstep.units import kT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ethanol whose C-C-O angle is 108 degrees and whose C-C bond 0.152 nm on average."""
    path = tmp_path_factory.mktemp("run") / "ethanol.npz"
    synthetic.save(path, synthetic.ethanol(seed=1, replicas=8, frames=400))
    return path


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "weighted.npz"
    trajectory = synthetic.ethanol(seed=1, replicas=8, frames=400)
    bond = np.linalg.norm(trajectory.pos[:, 1] - trajectory.pos[:, 0], axis=1)
    trajectory.weight = np.exp((bond - 0.152) / 0.003)  # shifts a Gaussian of that width by just as much
    synthetic.save(path, trajectory)
    return path


def test_known_averages_lie_within_their_errors(run):
    for function, wanted in ((distance(0, 1), 0.152), (angle(0, 1, 2), 108.0)):
        found = kstep.average(run, function)
        assert abs(found.mean - wanted) < 3 * found.error < 0.01 * wanted
        assert found.converged and found.frames == 3200 and found.chains == 8 and found.temperature_K == 300.0


def test_the_error_is_that_of_correlated_chains(run):
    """AR(1) with c = 0.8 is worth (1 - c) / (1 + c) of its frames, here as estimate_means has it too."""
    found = kstep.load(run).average(distance(0, 1))
    assert found.effective_samples == pytest.approx(3200 * 0.2 / 1.8, rel=0.3)
    t = load_trajectory(run)
    rows = [np.linalg.norm(t.pos[f, 1] - t.pos[f, 0], axis=1)[:, None] for r in range(8)
            for f in [np.flatnonzero((t.replica == r) & np.isin(t.segment, [i for i, s in enumerate(t.segments)
                                                                          if s["role"] == "train"]))]]
    assert found.error == pytest.approx(estimate_means(rows, 0.1).standard_error[0], rel=0.02)


def test_errors_cover(tmp_path):
    hits = 0
    for seed in range(100):
        found = average([synthetic.ethanol(seed=seed, replicas=4, frames=100)], distance(0, 1))
        hits += abs(found.mean - 0.152) <= found.error
    assert 58 <= hits <= 78


@pytest.mark.parametrize("unit", [1e-40, 1e-9, 1e12])
def test_errors_do_not_depend_on_the_unit(run, unit):
    """In metres or coulomb metres numbers are small, and no less uncertain."""
    bond, offset = distance(0, 1), 0.1
    found, same = (kstep.average(run, lambda x, u=u: u * np.stack([bond(x), 0 * bond(x) + offset], axis=1))
                   for u in (1.0, unit))
    assert found.error[0] > 0 and found.error[1] == 0
    for one, other in ((found.mean, same.mean), (found.error, same.error)):
        assert one == pytest.approx(other / unit, rel=1e-9)
    assert found.effective_samples == pytest.approx(same.effective_samples, rel=1e-9)


def test_weights_are_heeded(run, weighted):
    plain, shifted = kstep.average(run, distance(0, 1)), kstep.average(weighted, distance(0, 1))
    assert shifted.mean - plain.mean == pytest.approx(0.003, abs=4 * shifted.error)
    assert shifted.effective_samples < 0.8 * plain.effective_samples


def test_weights_of_a_few_frames_are_not_converged_and_say_so(run, tmp_path, capsys):
    """Energies of 40 modes at 300 K, at 330 and at 600 K: there the answer is off by many of its errors."""
    trajectory, path = load_trajectory(run), tmp_path / "energies.npz"
    rng, kT_own = np.random.default_rng(0), kT(300.0)
    trajectory.Epot = 0.5 * kT_own * rng.chisquare(40, len(trajectory.pos))
    synthetic.save(path, trajectory)
    near, far = (kstep.average(path, distance(0, 1), temperature_K=T) for T in (330.0, 600.0))
    assert near.converged and near.warning is None and near.weights["pareto_k_hat"] < 0.7
    assert "Pareto k-hat" in far.warning or "one frame" in far.warning
    assert not far.converged and kstep.average(run, distance(0, 1)).weights is None
    assert far.as_dict() == json.loads(json.dumps(far.as_dict()))
    assert main(["average", str(path), "--distance", "0-1", "--temperature", "600"]) == 0
    first, *_, row = capsys.readouterr().out.splitlines()
    assert f"NOT CONVERGED: {far.warning}" in first and row.endswith("not converged")


def test_a_temperature_that_no_frame_knows_of_is_not_converged(run):
    """At 1 K one frame has all the weight: its value had an error of 0 and as many samples as there are frames."""
    warm, cold = (kstep.average(run, distance(0, 1), temperature_K=T) for T in (None, 1.0))
    assert warm.converged and warm.warning is None
    assert not cold.converged and cold.effective_samples == pytest.approx(1.0) and "sample at that" in cold.warning


def test_vectors_and_functions_of_one_frame(run):
    rows = kstep.average(run, lambda x: x.std(axis=1))
    assert rows.mean.shape == rows.error.shape == rows.r_hat.shape == (3,)
    one = kstep.average(run, lambda x: np.linalg.norm(x[0] - x[1]), one_by_one=True)
    assert one.mean == pytest.approx(kstep.average(run, distance(0, 1)).mean)
    assert one.as_dict() == json.loads(json.dumps(one.as_dict()))


def test_radius_of_gyration_is_by_mass(run):
    masses, x = np.array([1.0, 3.0]), np.array([[[0.0, 0.0, 0.0], [0.4, 0.0, 0.0]]])
    assert radius_of_gyration(masses)(x) == pytest.approx(np.sqrt(0.25 * 0.3**2 + 0.75 * 0.1**2))
    assert 0.1 < kstep.average(run, "radius_of_gyration").mean < 0.2


@pytest.mark.parametrize("function, answer", [
    (lambda x: np.linalg.norm(x[0] - x[1]), r"gave values \(\) for positions"),
    (lambda x: np.linalg.norm(x[:, 0] - x[0, 1], axis=1), "depends on the other frames"),
    (lambda x: np.full(len(x), x.mean()), "depends on the other frames"),
    (lambda x: x[:, 99, 0], "failed on positions .* IndexError"),
    (lambda x: np.full(len(x), np.nan), "no finite number"),
    ("radius_of_gyraton", "did you mean 'radius_of_gyration'"),
    ("dipole", "stored no dipole"),
])
def test_a_function_that_is_wrong_is_told_so(run, function, answer):
    with pytest.raises(UserError, match=answer):
        kstep.average(run, function)


def test_a_function_cannot_change_the_run(run):
    result = kstep.load(run)
    before = result.positions.copy()

    def greedy(x):
        x[:] = 0.0
        return x[:, 0, 0]

    result.average(greedy)
    assert np.array_equal(result.positions, before)


def test_the_command_averages_names_and_files(run, tmp_path, capsys):
    code = "import numpy as np\n\ndef bond(x):\n    return np.linalg.norm(x[:, 0] - x[:, 1], axis=1)\n"
    (tmp_path / "mine.py").write_text(code)
    words = ["--distance", "0-1", "--angle", "0-1-2", "--radius-of-gyration", "--function", f"{tmp_path}/mine.py:bond",
             "--out", str(tmp_path / "a.json")]
    assert main(["average", str(run), *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "300 K, 8 chains, 3200 frames" and len(shown) == 7
    written = json.loads((tmp_path / "a.json").read_text())
    assert {"distance 0-1 / nm", "angle 0-1-2 / deg", "radius of gyration / nm"} < set(written)
    assert written["distance 0-1 / nm"] == written[f"{tmp_path}/mine.py:bond"]
    assert "executed" in help_of(capsys)


def help_of(capsys):
    with pytest.raises(SystemExit):
        main(["average", "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("words, answer", [
    ([], "say what is to be averaged"), (["--distance", "0-99"], "names atom 99"),
    (["--distance", "0"], "2 different atoms"), (["--distance", "0-0"], "2 different atoms"),
    (["--function", "none.py:f"], "none.py does not exist"), (["--function", "numpy:nothing"], "cannot be loaded"),
    (["--function", "broken.py:f"], "SyntaxError"), (["--function", "empty.py:f"], "has no 'f'"),
    (["--function", "f"], "must read file.py:name"), (["--dipole"], "stored no dipole"),
    (["--radius-of-gyration", "--temperature", "-3"], "not a number > 0"),
])
def test_a_mistake_is_one_sentence(run, tmp_path, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "empty.py").write_text("")
    try:
        code = main(["average", str(run), *words])
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err.strip()
    assert code == 2 and answer in err and "Traceback" not in err and len(err.splitlines()) == 1
