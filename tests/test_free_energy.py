"""Free energies: of known potentials, free and from windows, with errors that cover, and of what cannot be joined."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from kstep.analysis.measure.free_energy import Coordinate, free_energy
from kstep.analysis.measure.umbrella import gather
from kstep.cli import main
from kstep.cli.profile import say
from kstep.errors import UserError
from kstep.restraints import Bias, Restraint, values_of
from kstep.result import Result
from kstep.schemas import Trajectory, complete_trajectory, save_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages import umbrella
from kstep.stages.physics import load_physics, open_physics
from kstep.stages.sampling import SamplingSettings
from kstep.stages.umbrella import windows_along
from kstep.units import kT

T_K = 300.0
KT = kT(T_K)
RNG = np.random.default_rng
TORSION = Coordinate("dihedral", (0, 1, 2, 3))
GRID = np.linspace(-180.0, 180.0, 7201)


def potential(phi_deg):
    """Three wells of unlike depth, and barriers of 4 to 6 kT."""
    phi = np.radians(phi_deg)
    return 5.0 * (1.0 + np.cos(3.0 * phi)) + 2.0 * (1.0 + np.cos(phi)) + 0.7 * np.sin(phi)


def small(phi_deg):
    """Wells that every chain visits."""
    phi = np.radians(phi_deg)
    return 2.0 * np.cos(3.0 * phi) + 1.5 * np.cos(phi) + 1.0 * np.sin(phi)


def exact(u, bins):
    """F on bins, from quadrature."""
    edges = np.linspace(-180.0, 180.0, bins + 1)
    p = np.histogram(GRID[:-1] + 0.025, edges, weights=np.exp(-u(GRID[:-1] + 0.025) / KT))[0]
    f = -KT * np.log(p / p.max())
    return f, p / p.sum()


def positions_at(phi_deg):
    """Four atoms (S,4,3) nm with that dihedral."""
    phi = np.radians(phi_deg)
    x = np.zeros((len(phi), 4, 3))
    x[:, 0], x[:, 2] = (0.05, 0.14, 0.0), (0.15, 0.0, 0.0)
    x[:, 3, 0], x[:, 3, 1], x[:, 3, 2] = 0.2, 0.14 * np.cos(phi), 0.14 * np.sin(phi)
    return x


def chain(u, n, rng, correlated=1):
    """n draws of exp(-u/kT), each staying `correlated` frames."""
    cumulative = np.cumsum(np.exp(-u(GRID) / KT))
    drawn = np.interp(rng.random(-(-n // correlated)) * cumulative[-1], cumulative, GRID)
    return np.repeat(drawn, correlated)[:n]


def run_of(chains, restraints=(), weights=None, **metadata):
    """A file of torsion series (R,T), with the bias of its restraints."""
    n_chains, n = np.shape(chains)
    x = positions_at(np.concatenate(chains))
    zeros, replica = np.zeros(n_chains * n), np.repeat(np.arange(n_chains), n)
    arrays = complete_trajectory({
        "pos": x, "vel": np.zeros_like(x), **dict.fromkeys(("Ekin", "Epot", "Etot"), zeros),
        "time_ps": np.tile(np.arange(n) * 1.0, n_chains), "step": np.tile(np.arange(n), n_chains), "replica": replica,
        "segment": replica, "masses": np.full(4, 12.0), "masses_sampler": np.full(4, 12.0),
        "atom_types": np.array([6, 8, 8, 6]), "bonds": np.array([[0, 1], [1, 2], [2, 3]]),
        **({} if weights is None else {"weight": np.concatenate(weights)}),
        **({"bias": Bias(restraints).energy(x)} if restraints else {})})
    segments = [{"replica": r, "role": "train", "ensemble": "NVT", "temperature_K": T_K, "n_dof": 9}
                for r in range(n_chains)]
    held = {"restraints": [r.model_dump(mode="json") for r in restraints]} if restraints else {}
    return Trajectory(**arrays, metadata={"segments": segments, "molecule": "butane", "method": "known",
                                          "scheme": "plain", **held, **metadata})


def windows_of(u, n_windows, k, *, seed=0, chains=6, frames=80):
    """Runs of exact draws under u and each window."""
    rng, runs = np.random.default_rng(seed), []
    for window in windows_along("dihedral", (0, 1, 2, 3), n_windows, k):
        def held(phi, w=window):
            return u(phi) + w.k * (1.0 - np.cos(np.radians(phi - w.centre)))
        runs.append(run_of([chain(held, frames, rng) for _ in range(chains)], (window,)))
    return runs


def test_windows_recover_a_known_potential_within_errors():
    """Barriers too, over which no chain goes; with the wrong sign of W, or another beta, it is off by far."""
    found = free_energy(gather(windows_of(potential, 14, 60.0)), TORSION)
    wanted, p = exact(potential, 36)
    density = found.density * 10.0
    error = found.error / KT * density
    z = (density - p) / error
    assert np.ptp(wanted) > 11.0 and np.abs(z).max() < 5.0 and 0.5 < np.sqrt((z**2).mean()) < 1.7
    assert np.abs(found.free_energy - wanted).max() < 1.5 and not found.warnings
    wells, barriers = found.extrema()
    assert len(wells) == 3 and len(barriers) == 3
    for point in wells + barriers:
        b = int((point["at"] + 180.0) // 10.0)
        assert point["free_energy"] == pytest.approx(wanted[b] - wanted[found.lowest], abs=1.2)
        assert (point["error"] == 0.0) == (point["free_energy"] == 0.0)


@pytest.mark.parametrize("fault", ["sign", "temperature"])
def test_what_is_wrong_in_the_reduced_energies_shows(fault):
    """Half of the windows: all the way round, -W of one is W of another, and MBAR asks no frame where it came from."""
    samples = gather(windows_of(potential, 14, 60.0, chains=3)[:8])
    factor = -1.0 if fault == "sign" else 300.0 / 600.0
    found = free_energy(replace(samples, reduced_bias=factor * samples.reduced_bias), TORSION)
    right, held = free_energy(samples, TORSION), slice(2, 17)
    wanted = exact(potential, 36)[0][held]
    assert np.abs(right.free_energy[held] - right.free_energy[held].mean() - wanted + wanted.mean()).max() < 1.5
    assert not np.abs(found.free_energy[held] - found.free_energy[held].mean() - wanted + wanted.mean()).max() < 2.5


def test_windows_that_do_not_overlap_are_said():
    found = free_energy(gather(windows_of(potential, 6, 800.0, chains=3, frames=40)), TORSION)
    assert any("parts without overlap" in words for words in found.warnings)
    assert not gather(windows_of(potential, 14, 60.0, chains=3, frames=40)).warnings()


@pytest.mark.parametrize("k, off", [(1e4, False), (1.6e5, True)])
def test_a_restraint_that_all_windows_share_is_doubted_where_it_is_too_strong(k, off):
    """A bond that depends on the torsion, held too long: frames of the free one are none where k is four times its
    own, and F is off by kJ/mol without a word of its error."""
    own_k, fixed, rng, runs = 4e4, Restraint(kind="distance", atoms=(0, 1), centre=0.178, k=k), RNG(4), []
    stiff = own_k * k / (own_k + k)  # of the marginal in the torsion
    for window in windows_along("dihedral", (0, 1, 2, 3), 8, 10.0):
        def held(phi, w=window):
            return (small(phi) + 0.5 * stiff * (fixed.centre - length(phi)) ** 2
                    + w.k * (1.0 - np.cos(np.radians(phi - w.centre))))
        chains = [chain(held, 100, rng) for _ in range(8)]
        run, phi = run_of(chains, (fixed, window)), np.concatenate(chains)
        bond = rng.normal((own_k * length(phi) + k * fixed.centre) / (own_k + k), np.sqrt(KT / (own_k + k)))
        away = run.pos[:, 0] - run.pos[:, 1]
        run.pos[:, 0] = run.pos[:, 1] + away * (bond / np.linalg.norm(away, axis=1))[:, None]
        runs.append(replace(run, bias=Bias((fixed, window)).energy(run.pos)))
    found = free_energy(gather(runs), TORSION, bins=12)
    assert (np.abs(found.free_energy - exact(small, 12)[0]).max() > 2.0) == off
    assert any("all windows are held by distance 0-1 at 0.178 nm" in words for words in found.warnings) == off


def length(phi):
    """Of the bond at a torsion, nm."""
    return 0.148 + 0.004 * np.cos(np.radians(phi))


def test_weighted_windows_are_drawn_by_their_weights():
    """Frames that follow another potential and weigh the difference make the same profile."""
    rng, runs = np.random.default_rng(2), []
    for window in windows_along("dihedral", (0, 1, 2, 3), 8, 20.0):
        def held(phi, w=window):
            return small(phi) + w.k * (1.0 - np.cos(np.radians(phi - w.centre)))
        def followed(phi, held=held):
            return held(phi) + 2.0 * np.sin(np.radians(phi))
        chains = [chain(followed, 300, rng) for _ in range(3)]
        weights = [7.0 * np.exp(2.0 * np.sin(np.radians(phi)) / KT) for phi in chains]
        runs.append(run_of(chains, (window,), weights))
    found = free_energy(gather(runs), TORSION, bins=18)
    wrong = free_energy(gather([replace(run, weight=np.zeros(0)) for run in runs]), TORSION, bins=18)
    wanted = exact(small, 18)[0]
    assert np.abs(found.free_energy - wanted).max() < 1.0 < np.abs(wrong.free_energy - wanted).max()


def test_chains_that_have_not_mixed_are_drawn_by_what_they_weigh():
    """Half of them at 60 degrees, where frames weigh four times as much: 4 to 1, whatever each chain alone says."""
    runs = []
    for window in windows_along("dihedral", (0, 1, 2, 3), 2, 0.001):
        places = np.repeat([60.0, -60.0], 4)[:, None] + RNG(5).normal(0.0, 1.0, (8, 100))
        runs.append(run_of(list(places), (window,), [np.where(phi > 0, 4.0, 1.0) for phi in places]))
    samples = gather(runs)
    phi = values_of("dihedral", (0, 1, 2, 3), samples.positions)
    assert samples.weights[phi > 0].sum() == pytest.approx(0.8, abs=0.01)


def test_one_restrained_run_weighs_its_restraint_out():
    held = Restraint(kind="dihedral", atoms=(0, 1, 2, 3), centre=90.0, k=1.5)
    rng = np.random.default_rng(3)
    chains = [chain(lambda phi: small(phi) + 1.5 * (1.0 - np.cos(np.radians(phi - 90.0))), 2000, rng) for _ in range(8)]
    run = run_of(chains, (held,))
    found, wanted = free_energy(gather([run]), TORSION, bins=12), exact(small, 12)[0]
    assert np.abs(found.free_energy - wanted).max() < 0.5
    assert np.abs(free_energy(gather([replace(run, bias=np.zeros(0), metadata={**run.metadata, "restraints": None})]),
                              TORSION, bins=12).free_energy - wanted).max() > 1.0


@pytest.mark.parametrize("n_chains", [4, 16])
def test_errors_cover_the_truth(n_chains):
    """68 % of -kT ln p lie within one error, of correlated chains, few or many: Student's factor is in it."""
    _, p = exact(small, 8)
    inside, n_runs = [], 100
    for seed in range(n_runs):
        rng = np.random.default_rng(seed)
        found = free_energy(gather([run_of([chain(small, 240, rng, correlated=8) for _ in range(n_chains)])]), TORSION,
                            bins=8)
        inside.append(np.abs(found.density * 45.0 - p) < found.error / KT * np.maximum(found.density, 1e-9) * 45.0)
    covered = np.mean(inside)
    assert 0.58 < covered < 0.78, covered


def test_the_error_of_a_difference_knows_that_both_ends_are_of_one_run():
    wanted, _ = exact(small, 8)
    top, bottom = int(wanted.argmax()), int(wanted.argmin())
    inside = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        run = run_of([chain(small, 300, rng, correlated=4) for _ in range(10)])
        found = free_energy(gather([run]), TORSION, bins=8)
        value, error = found.difference(top, bottom)
        inside.append(abs(value - wanted[top] + wanted[bottom]) < error)
    assert 0.55 < np.mean(inside) < 0.80


def test_a_distance_is_measured_without_its_shell():
    """-kT ln P(r): points that fill a ball evenly have P ~ r^2, and that is what is shown."""
    rng = np.random.default_rng(4)
    run = run_of([chain(small, 20000, rng) for _ in range(4)])
    x = np.zeros_like(run.pos)
    x[:, 1] = rng.normal(size=(len(x), 3))
    x[:, 1] *= 0.5 * (rng.random(len(x)) ** (1 / 3) / np.linalg.norm(x[:, 1], axis=1))[:, None]
    found = free_energy(gather([replace(run, pos=x)]), Coordinate("distance", (0, 1)), bins=20)
    r = found.centres[0]
    assert np.abs(found.density - 3 * r**2 / 0.5**3)[5:].max() < 0.15 and found.coordinates[0].unit == "nm"


def test_a_map_is_of_both_torsions():
    rng = np.random.default_rng(5)
    run = run_of([chain(small, 4000, rng) for _ in range(4)])
    found = free_energy(gather([run]), TORSION, Coordinate("angle", (0, 1, 2)), bins=6)
    assert found.density.shape == found.error.shape == (6, 6)
    width = np.diff(found.edges[1])[0]
    assert found.density[found.known].sum() * 60.0 * width == pytest.approx(1.0)
    marginal = found.density.sum(axis=1) / found.density.sum()
    assert np.allclose(marginal, free_energy(gather([run]), TORSION, bins=6).density * 60.0)


def test_one_heavy_frame_is_no_well():
    """A frame far up the restraint of its window weighs as much as a well; F is not counted from there."""
    runs = windows_of(potential, 14, 60.0)[7:]
    runs[0].pos[0] = positions_at(np.array([-100.0]))[0]
    runs = [replace(run, bias=Bias(run.restraints).energy(run.pos)) for run in runs]
    found, wanted = free_energy(gather(runs), TORSION), exact(potential, 36)[0]
    assert found.density[8] > 1e3 and not found.known[8] and found.known[18:36].sum() >= 17
    assert abs(found.free_energy[24] - (wanted[24] - wanted[found.lowest])) < 1.5
    assert all(abs(point["at"] + 95.0) > 20.0 for points in found.extrema() for point in points)


def test_scatter_of_a_short_run_is_no_well():
    """Two wells, few frames: bins that one chain saw, or none, make no well of every bin between them."""
    rng, counted = np.random.default_rng(3), []
    for _ in range(6):
        chains = [np.where(rng.random(25) < 0.6, 60.0, -70.0) + rng.normal(0.0, 22.0, 25) for _ in range(8)]
        wells = free_energy(gather([run_of(chains)]), TORSION).extrema()[0]
        counted.append(len(wells))
        assert all(min(abs(w["at"] - 60.0), abs(w["at"] + 70.0)) < 50.0 for w in wells)
    assert 2 <= np.mean(counted) <= 2.5, counted


def test_chains_that_do_not_agree_are_said_and_few_give_no_error():
    rng = np.random.default_rng(6)
    apart = [np.full(200, centre) + rng.normal(0.0, 8.0, 200) for centre in (60.0, 60.0, 60.0, -60.0)]
    found = free_energy(gather([run_of(apart)]), TORSION)
    assert any("not converged" in words for words in found.warnings)
    two = free_energy(gather([run_of(apart[:2])]), TORSION)
    assert two.error is None and any("fewer than four" in words for words in two.warnings)
    assert two.extrema()[0][0]["error"] is None


@pytest.mark.parametrize(("change", "words"), [
    ({"metadata": {"method": "other"}}, "one method"),
    ({"atom_types": np.array([6, 6, 6, 8])}, "one molecule"),
    ({"segments": 400.0}, "one temperature"),
])
def test_runs_that_do_not_belong_together_are_refused(change, words):
    run = run_of([chain(small, 50, np.random.default_rng(0)) for _ in range(4)])
    metadata = {**run.metadata, **change.get("metadata", {})}
    if "segments" in change:
        metadata["segments"] = [{**s, "temperature_K": change["segments"]} for s in metadata["segments"]]
    other = replace(run, metadata=metadata, **{k: v for k, v in change.items() if k == "atom_types"})
    with pytest.raises(UserError, match=words):
        gather([run, other])


# files and commands


@pytest.fixture
def files(tmp_path):
    """Windows as files, and a free run beside them."""
    paths = []
    for n, run in enumerate(windows_of(small, 6, 10.0, chains=4, frames=100)):
        paths.append(tmp_path / f"window_{n:02d}.npz")
        save_trajectory(paths[-1], {k: v for k, v in vars(run).items() if k != "metadata"}, run.metadata)
    run = run_of([chain(small, 500, np.random.default_rng(1)) for _ in range(4)])
    save_trajectory(tmp_path / "free.npz", {k: v for k, v in vars(run).items() if k != "metadata"}, run.metadata)
    return paths, tmp_path / "free.npz"


def test_kstep_profile_writes_json_csv_and_a_picture(files, tmp_path):
    windows, free = files
    assert main(["profile", *map(str, windows), "--torsion", "0-1-2-3", "--out", str(tmp_path / "w")]) == 0
    found = json.loads((tmp_path / "w" / "dihedral_0-1-2-3.json").read_text())
    assert found["windows"] == 6 and len(found["free_energy"]) == 36 and found["coordinates"][0]["unit"] == "deg"
    assert np.abs(np.array(found["free_energy"]) - exact(small, 36)[0]).max() < 1.5
    with open(tmp_path / "w" / "dihedral_0-1-2-3.csv") as text:
        rows = [*csv.reader(text)]
    assert len(rows) == 37 and float(rows[1][0]) == -175.0 and float(rows[5][1]) == pytest.approx(
        found["free_energy"][4], abs=1e-4)
    assert (tmp_path / "w" / "dihedral_0-1-2-3.png").read_bytes().startswith(b"\x89PNG")
    assert main(["profile", str(free), "--bins", "12"]) == 0  # the rotatable torsion, beside the file
    assert (tmp_path / "free_profile" / "dihedral_0-1-2-3.json").is_file()
    assert main(["profile", str(free), "--torsion", "0-1-2-3", "--distance", "0-3", "--map"]) == 0
    assert (tmp_path / "free_profile" / "dihedral_0-1-2-3_distance_0-3.png").is_file()


def test_a_result_has_its_profile(files):
    windows, free = files
    alone = Result(free).profile(bins=12)
    joined = Result(windows[0]).profile("dihedral:0-1-2-3", bins=12, with_runs=windows[1:])
    assert joined.windows == 6 and np.abs(joined.free_energy - alone.free_energy).max() < 1.5
    assert Result(free).profile("dihedral:0-1-2-3", "distance:0-3", bins=5).density.shape == (5, 5)
    with pytest.raises(UserError, match="did you mean"):
        Result(free).profile("dihedrl:0-1-2-3")


@pytest.mark.parametrize(("flags", "words"), [
    (["--torsion", "0-1-2"], "4 different atoms"),
    (["--torsion", "a-b-c-d"], "no list of atoms"),
    (["--distance", "3-3"], "a distance is one of 2 different atoms"),
    (["--distance", "0-9"], "names atom 9"),
    (["--map"], "a map is of two"),
    (["--bins", "1"], "whole number from 2"),
    (["--torsion", "0-1-2-3", "--map"], "a map is of two"),
    (["--torsion", "0-1-2-3", "--torsion", "3-2-1-0", "--map"], "against itself"),
])
def test_bad_flags_of_profile_are_one_sentence(files, flags, words, capsys):
    try:
        code = main(["profile", str(files[1]), *flags])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and words in said and said.count("\n") == 1


@pytest.mark.parametrize(("flags", "words"), [
    (["--k", "100"], "one --restrain"),
    (["--k", "100", "--restrain", "dihedral:0-1-2-3", "--restrain", "distance:0-3"], "one --restrain"),
    (["--restrain", "dihedral:0-1-2-3"], "--k"),
    (["--k", "-1", "--restrain", "dihedral:0-1-2-3"], "number > 0"),
    (["--k", "100", "--restrain", "distance:0-3"], "need --from and --to"),
    (["--k", "100", "--restrain", "distance:0-3", "--from", "0.5", "--to", "0.2"], "from a smaller to a larger"),
    (["--k", "100", "--restrain", "dihedral:0-1-2-3", "--from", "0"], "go together"),
    (["--k", "100", "--restrain", "dihedral:0-1-2-33"], "names atom 33"),
    (["--k", "100", "--restrain", "dihedral:0-1-2-3", "--windows", "0"], "whole number >= 1"),
])
def test_bad_flags_of_umbrella_are_one_sentence(flags, words, capsys, tmp_path):
    try:
        code = main(["umbrella", "CCCC", "--out", str(tmp_path / "u"), "--scheme", "plain", "--steps", "1", *flags])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and words in said and said.count("\n") == 1


def test_windows_go_all_round_and_between():
    around = windows_along("dihedral", (0, 1, 2, 3), 4, 50.0)
    assert [w.centre for w in around] == [-180.0, -90.0, 0.0, 90.0]
    assert [w.centre for w in windows_along("distance", (0, 1), 3, 50.0, 0.2, 0.4)] == pytest.approx([0.2, 0.3, 0.4])


def test_umbrella_runs_windows_and_joins_them(tmp_path, caplog):
    """Plain dynamics of butane under MMFF94: three windows over the barrier from gauche to anti."""
    out = tmp_path / "u"
    code = main(["umbrella", "CCCC", "--config", "md", "--scheme", "plain", "--steps", "80", "--burn-in-steps", "20",
                 "--replicas", "4", "--restrain", "dihedral:0-1-2-3", "--from", "60", "--to", "180", "--windows", "3",
                 "--k", "40", "--out", str(out), "--set", "save_interval_steps=5"])
    assert code == 0
    for n, centre in enumerate((60, 120, 180)):
        run = Result(out / f"window_{n:02d}.npz").trajectory
        assert run.restraints[0].centre == centre
        off = values_of("dihedral", (0, 1, 2, 3), run.pos) - centre
        assert np.abs((off + 180) % 360 - 180).mean() < 25.0
    found = json.loads((out / "dihedral_0-1-2-3.json").read_text())
    assert found["windows"] == 3 and np.shape(found["overlap"]) == (3, 3)


@pytest.mark.parametrize("below", ["via", "teacher"])
@pytest.mark.parametrize("learn", [True, False])
def test_umbrella_climbs_a_ladder_of_truth_once_and_for_all_windows(below, learn, tmp_path, monkeypatch):
    learned, asked = [], []
    monkeypatch.setattr(umbrella, "learn_network", lambda s: learned.append(s) or (s.hybrid, tmp_path / "net.pt"))
    monkeypatch.setattr(umbrella, "sample", lambda s: asked.append(s) or {"config": {}})
    dear = open_physics("CCCC", load_physics("configs/qm.yaml"))
    cheap = dear.on(load_physics("configs/qm.yaml", {"method": "GFN1-xTB"}))
    sampling = SamplingSettings(physics=dear, hybrid=HybridConfig(), out=tmp_path / "u", learn=learn,
                                **{below: (cheap,) if below == "via" else cheap})
    umbrella.run_windows(umbrella.UmbrellaSettings(
        sampling=sampling, windows=windows_along("dihedral", (0, 1, 2, 3), 3, 50.0)))
    assert [s.below for s in learned] == [(cheap,)]
    assert [(s.learns, s.checkpoint, s.labels) for s in asked] == 3 * [(False, tmp_path / "net.pt", None)]


def test_saying_it_takes_a_line(capsys, caplog, tmp_path):
    run = run_of([chain(small, 400, np.random.default_rng(1)) for _ in range(4)])
    with caplog.at_level("INFO", logger="kstep"):
        say([free_energy(gather([run]), TORSION)], tmp_path)
    assert "dihedral 0-1-2-3: wells" in caplog.text and "barriers" in caplog.text
