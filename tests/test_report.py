"""The page of one run says what the run holds, answer first, and needs nothing else; a browser clicks through it."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import kstep
import synthetic
from kstep.analysis.measure.free_energy import Coordinate, free_energy
from kstep.analysis.measure.populations import conformers_of_frames, populations
from kstep.analysis.measure.umbrella import gather
from kstep.analysis.show.report import figures, molecule, write_report
from kstep.analysis.show.report.libraries import LIBRARIES
from kstep.analysis.show.report.sections import answer, cost, duration, spectrum_of, views
from kstep.cli import main
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.schemas import Trajectory, complete_trajectory

OH = (0, 1, 2, 8)


def agreeing(seed=0, **more):
    return synthetic.ethanol(seed, 6, 400, scheme="metropolis", correlation=0.3, hop=0.3, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of which the chains agree, one of which they do not, plain MD, and their pages."""
    folder = tmp_path_factory.mktemp("report")
    synthetic.save(folder / "ethanol.npz", agreeing())
    synthetic.save(folder / "stuck.npz", synthetic.ethanol(0, 4, 60, scheme="metropolis", wells=[0, 1, 1, 0]))
    synthetic.save(folder / "plain.npz", synthetic.ethanol(1, 4, 400))
    write_report(folder / "ethanol.npz", baseline=folder / "plain.npz")
    write_report(folder / "stuck.npz", folder / "stuck.html")
    return folder


def of_page(path):
    """The text of a page without its libraries, and the numbers in it."""
    text = re.sub(r'<script type="text/plain".*?</script>', "", path.read_text(), flags=re.S)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return text, json.loads(found[1])


def body_of(text):
    shown = text[text.index("<body>"):text.index('<script type="application')]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown))


def test_the_first_words_are_the_answer(folder):
    first = body_of(of_page(folder / "ethanol_report.html")[0]).strip()
    assert first.startswith("Converged. 2 conformers of ethanol at 300 K: A ")
    found = populations([kstep.load(folder / "ethanol.npz").trajectory])
    assert 0.6 < found.conformers[0].population < 0.73  # 2/3: two wells that are each other's mirror image
    for c in found.conformers:
        assert f"{c.label} {100 * c.population:.1f} ± {100 * c.population_error:.1f} %" in first
    stuck = body_of(of_page(folder / "stuck.html")[0]).strip()
    assert stuck.startswith("Not converged.") and "R-hat" in stuck[:600]


def test_a_page_replaces_no_run(folder):
    before = (folder / "ethanol.npz").read_bytes()
    for words in (["ethanol.npz", "--out", "ethanol.npz"], ["stuck.npz", "--out", "ethanol.npz"],
                  ["stuck.npz", "--baseline", "plain.npz", "--out", "plain.npz"]):
        assert main(["report", *(str(folder / w) if w.endswith(".npz") else w for w in words)]) == 2
    with pytest.raises(UserError, match="would be overwritten"):
        kstep.load(folder / "ethanol.npz").report(folder / "ethanol.npz")
    assert (folder / "ethanol.npz").read_bytes() == before


def test_a_page_asks_the_network_for_nothing(folder):
    text, _ = of_page(folder / "ethanol_report.html")
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "@import" not in text
    assert "default-src 'none'" in text and "connect-src" not in text
    assert (folder / "ethanol_report.html").stat().st_size < 6e6


def test_plain_md_stands_below_and_only_where_it_is_given(folder):
    text = body_of(of_page(folder / "ethanol_report.html")[0])
    assert text.index("Converged.") < text.index("Against plain MD") and "noise floor" in text
    assert "plain MD" in json.dumps(of_page(folder / "ethanol_report.html")[1]["figures"])
    alone = of_page(folder / "stuck.html")
    assert "Against plain MD" not in alone[0] and "plain MD" not in json.dumps(alone[1]["figures"])


def test_words_of_a_file_are_words_on_the_page(tmp_path):
    run = agreeing(smiles=None, method="<script>alert(1)</script><b>x")
    synthetic.save(tmp_path / "run.npz", run)
    write_report(tmp_path / "run.npz", tmp_path / "run.html")
    text, _ = of_page(tmp_path / "run.html")
    assert "<script>alert" not in text and "<b>x" not in text and "&lt;script&gt;alert(1)" in text


def test_the_figure_of_a_torsion_is_its_free_energy():
    run = agreeing()
    found = free_energy(gather([run]), Coordinate("dihedral", OH), bins=36)
    drawn = figures.torsion(found)["data"]
    share, height = drawn[2], drawn[5]
    assert sum(share["y"]) * 10.0 == pytest.approx(100.0, rel=1e-3) and min(filter(None, height["y"])) >= 0.0
    lower, upper = np.array(drawn[0]["y"]), np.array(drawn[1]["y"])
    seen = np.array(share["y"]) > 0.5
    relative = 0.5 * (upper - lower)[seen] / np.array(share["y"])[seen]
    F_error = np.array([height["customdata"][i] for i in np.flatnonzero(seen)])
    assert relative * 0.0083144626 * 300.0 == pytest.approx(F_error, rel=1e-2)
    both = figures.torsion(found, found)
    shown = [trace["visible"] for trace in both["data"]]
    assert shown == both["layout"]["updatemenus"][0]["buttons"][0]["args"][0]["visible"] and len(both["data"]) == 8


def test_frames_have_the_conformers_that_are_counted():
    run = agreeing()
    found = populations([run])
    frames, conformer = conformers_of_frames(run, found)
    shares = np.bincount(conformer, minlength=2) / len(conformer)
    assert shares[:2] == pytest.approx([c.population for c in found.conformers], abs=1e-9)
    for n, c in enumerate(found.conformers):
        assert conformer[frames == c.frame] == [n]
    # the conformers are gauche and trans
    torsions = np.abs(dihedrals_deg(run.pos[frames], np.array([OH]))[:, 0])
    assert np.mean(torsions[conformer == 0] < 120) > 0.99 and np.mean(torsions[conformer == 1] > 120) > 0.99
    assert set(run.segment[frames]) == {i for i, s in enumerate(run.segments) if s["role"] == "train"}


def test_running_populations_end_at_the_chains_own():
    chains = [np.array([0, 0, 1, 1]), np.array([1, 1, 1, 0])]
    weights = [np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 3.0])]
    drawn = figures.running(chains, weights, ["A", "B"], [(0.6, 0.1), (0.4, 0.1)])
    assert [trace["y"] for trace in drawn["data"][:2]] == [[1.0, 1.0, pytest.approx(2 / 3, abs=1e-4), 0.5],
                                                           [0.0, 0.0, 0.0, 0.75]]
    assert [t["visible"] for t in drawn["data"]] == [True] * 5 + [False] * 5


def test_dynamics_shows_its_spectrum_and_a_sampler_has_none():
    assert spectrum_of(agreeing(), None) is None
    run = vibrating()
    shown = spectrum_of(run, vibrating(shift=1.02))
    assert shown["problem"] is None and len(shown["peaks"]) == 1
    position, shift = (float(shown["peaks"][0][key].split()[0]) for key in ("at", "shift"))
    assert position == pytest.approx(2000.0, abs=15.0) and shift == pytest.approx(-40.0, abs=10.0)
    trace = shown["figure"]["data"][-2]
    assert trace["x"][int(np.argmax(trace["y"]))] == pytest.approx(2000.0, abs=15.0)
    slow = spectrum_of(vibrating(every=40), None)
    assert not slow["peaks"] and "Nyquist" in slow["problem"]


def vibrating(shift=1.0, every=1):
    """A diatomic of 2000 cm-1 in NVE, two stretches of 6 ps; its dipole along the bond."""
    t = np.arange(0, 6.0, 5e-4 * every)
    omega = 2.0 * np.pi * 2000.0 * shift / 33.3564095198152
    arrays = {key: [] for key in ("pos", "vel", "dipole", "time_ps", "step", "replica", "segment")}
    for r in range(2):
        x, v = 0.005 * np.cos(omega * t + r), -0.005 * omega * np.sin(omega * t + r)
        pos, vel = np.zeros((len(t), 2, 3)), np.zeros((len(t), 2, 3))
        pos[:, 0, 0], pos[:, 1, 0] = -0.06 - x / 2, 0.06 + x / 2
        vel[:, 0, 0], vel[:, 1, 0] = -v / 2, v / 2
        for key, value in (("pos", pos), ("vel", vel), ("time_ps", t), ("step", np.arange(len(t))),
                           ("dipole", 0.3 * (pos[:, 1] - pos[:, 0])), ("replica", np.full(len(t), r)),
                           ("segment", np.full(len(t), r))):
            arrays[key].append(value)
    arrays = {key: np.concatenate(parts) for key, parts in arrays.items()}
    kinetic = 0.5 * 12.0 * (arrays["vel"] ** 2).sum(axis=(1, 2))
    return Trajectory(**complete_trajectory({
        **arrays, "Ekin": kinetic, "Epot": -kinetic, "Etot": 0 * kinetic, "masses": np.full(2, 12.0),
        "masses_sampler": np.full(2, 12.0), "atom_types": np.array([6, 6]), "bonds": np.array([[0, 1]])}),
        metadata={"molecule": "c2", "method": "synthetic", "scheme": "plain", "dt_fs": 0.5, "temperature_K": 300.0,
                  "segments": [{"replica": r, "role": "train", "ensemble": "NVE", "temperature_K": 300.0, "n_dof": 3}
                               for r in range(2)]})


def test_what_plays_is_the_molecule_turned_onto_its_representative():
    run = agreeing()
    found = populations([run])
    turned = replace(run, pos=run.pos @ np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]) + 5.0)
    shown = views(turned, found)
    assert shown["elements"][:4] == ["C", "C", "O", "H"] and len(shown["bonds"]) == 8
    assert list(shown["sets"]) == ["A", "B", "run"]
    for c in found.conformers:
        one = shown["sets"][c.label]
        frames = 1e-4 * np.array(one["frames"]).reshape(-1, 9, 3)
        assert len(frames) == len(one["words"]) == 31 and one["words"][0].startswith(f"{c.label}: representative")
        heavy = [0, 1, 2, 8]
        assert np.linalg.norm(frames[0][1] - frames[0][2]) == pytest.approx(
            np.linalg.norm(run.pos[c.frame][1] - run.pos[c.frame][2]), abs=3e-4)
        away = np.sqrt(((frames[1:, heavy] - frames[0, heavy]) ** 2).sum(axis=-1).mean(axis=-1))
        assert away.max() < 0.02  # nm; without turning they are 0.1 and more apart
    minimum = replace(found, conformers=(replace(found.conformers[0], relaxed={
        "positions_nm": run.pos[found.conformers[0].frame] * 1.1, "energy_kJ": -1.0, "relative_energy_kJ": 0.0,
        "true_calls": 3, "converged": True, "kept": True}),))
    one = views(run, minimum)["sets"]["A"]
    assert one["words"][0] == "A: relaxed"
    first = 1e-4 * np.array(one["frames"][0]).reshape(9, 3)
    assert np.linalg.norm(first[1] - first[2]) == pytest.approx(
        1.1 * np.linalg.norm(run.pos[found.conformers[0].frame][1] - run.pos[found.conformers[0].frame][2]), abs=3e-4)


def test_a_drawing_numbers_the_atoms_of_torsions_or_says_why_there_is_none():
    svg, why = molecule.drawing(agreeing(), {0, 1, 2, 8})
    assert why is None and svg.startswith("<svg") and "http://www.rdkit.org" not in svg.split(">")[-1]
    svg, why = molecule.drawing(agreeing(smiles="CCC"), set())
    assert svg is None and "are not those of its SMILES CCC" in why


def test_the_answer_says_that_it_is_not_converged_first():
    found = populations([agreeing()])
    assert answer(found)["good"] and answer(found)["words"].startswith("Converged.")
    doubtful = replace(found, converged=False, problems=["no chain crossed"])
    assert answer(doubtful)["words"].startswith("Not converged.")
    assert answer(doubtful)["problems"] == ["No chain crossed."]


def test_costs_are_told_apart_and_in_units_that_fit():
    run = agreeing(true_calls_training=500, cpu_s_training=7200.0)
    lines = dict(cost(run, [{"samples": "100"}, {"samples": "250"}]))
    assert "500 of learning" in lines["true calls"] and "2 h of learning" in lines["CPU time"]
    calls = int(lines["true calls"].split()[0].replace(",", ""))
    assert lines["samples per 1000 calls"].startswith(f"{1000 * 100 / (calls + 500):.0f} ")
    assert [duration(s) for s in (3.0, 600.0, 10800.0, 864000.0)] == ["3 s", "10 min", "3 h", "10 days"]


def test_from_python_and_the_command_line(folder, capsys):
    path = kstep.load(folder / "stuck.npz").report(folder / "again.html")
    assert path == folder / "again.html" and body_of(of_page(path)[0]) == body_of(of_page(folder / "stuck.html")[0])
    assert main(["report", str(folder / "stuck.npz"), "--out", str(folder / "third.html")]) == 0
    said = capsys.readouterr().err
    assert "Not converged." in said.strip().splitlines()[-1] and str(folder / "third.html") in said


@pytest.mark.parametrize("words, sentence", [
    (["nothing.npz"], "nothing.npz does not exist"),
    (["{}/ethanol.npz", "--baseline", "nowhere"], "nowhere does not exist"),
    (["{}/ethanol.npz", "--baseline", "{}/other.npz"], "molecule 'ethanol' has no baseline"),
    (["{}/ethanol.npz", "--baseline", "{}/method.npz"], "compare runs of one method"),
    (["{}/plain.npz", "--baseline", "{}/plain.npz"], "would be judged against itself"),
    (["{}/short.npz"], "four"), (["{}/ethanol.npz", "--out", "{}"], "it is a folder")])
def test_bad_input_is_one_sentence_and_no_page(words, sentence, folder, capsys):
    synthetic.save(folder / "other.npz", synthetic.ethanol(1, 4, 40, molecule="methanol"))
    synthetic.save(folder / "method.npz", synthetic.ethanol(1, 4, 40, method="another"))
    synthetic.save(folder / "short.npz", synthetic.ethanol(1, 4, 2))
    before = set(folder.iterdir())
    assert main(["report", *(word.format(folder) for word in words)]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and len(said.splitlines()) == 1 and set(folder.iterdir()) == before


def test_a_library_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setitem(LIBRARIES, "plotly", "plotly/no_such.js")
    with pytest.raises(UserError, match="pip install 'plotly'"):
        write_report(folder / "stuck.npz", folder / "none.html")
    assert not (folder / "none.html").exists()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=program, timeout=300_000, args=[
            "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])
        yield found
        found.close()


@pytest.mark.parametrize("width", [1400, 390])
def test_a_browser_clicks_through(width, folder, browser):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(300_000)
    complaints, asked = [], []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / "ethanol_report.html").as_uri())
    page.wait_for_selector("body[data-ready=yes]")

    def drawn():  # the picture of the molecule
        return page.evaluate("document.querySelector('#view canvas').toDataURL()")

    assert page.text_content("#frame").startswith("A: representative")
    assert page.evaluate("document.querySelectorAll('.plot .main-svg').length") >= 2
    first = drawn()
    page.click("[data-card=B] button.show")
    page.wait_for_function("document.querySelector('#frame').textContent.startsWith('B: representative')")
    assert page.evaluate("document.querySelector('[data-card=B]').classList.contains('shown')")
    second = drawn()
    assert second != first and len(second) > 2000
    page.click("#play")
    page.wait_for_function("Number(document.querySelector('#slider').value) >= 2")
    page.click("#play")
    assert drawn() != second and page.text_content("#play") == "Play"
    held = page.input_value("#slider")
    page.wait_for_timeout(400)
    assert page.input_value("#slider") == held
    page.click("button[data-set=run]")
    page.wait_for_function("document.querySelector('#frame').textContent.includes(' ps, conformer ')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not complaints and all(url.startswith(("file:", "blob:", "data:")) for url in asked), (complaints, asked)
    page.close()
