"""benchmarks/gpu.py: it runs on a CPU as far as that goes, what fails stops nothing, and what was not seen says why."""

import importlib
import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from conftest import ROOT

JUNIT = """<testsuites><testsuite>
<testcase name="good"/><testcase name="bad"><failure message="x"/></testcase><testcase name="worse"><error/></testcase>
<testcase name="later"><skipped message="no CUDA GPU"/></testcase></testsuite></testsuites>"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return importlib.import_module("gpu")


@pytest.fixture
def sections(gpu):
    return importlib.import_module("gpu_sections")


def run(gpu, monkeypatch, *words):
    """The exit code of the script, in this process; its sections are others."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    return end.value.code


def numbers(data):
    """Every figure or null of a nested table."""
    return [leaf for value in data.values() for leaf in (numbers(value) if isinstance(value, dict) else [value])]


def test_sections_are_processes_whose_findings_are_one_record(gpu, sections, monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    # the half-batches without the windows that their network learns from: it is said, and the next section runs
    code = run(gpu, monkeypatch, "--device", "cpu", "--quick", "--sections", "overlap", "inner_loop", "--out", out)
    record = json.loads(out.read_text())
    text, loop = gpu.table(record), record["sections"]["inner_loop"]
    assert code == 1 and record["gpu"] is None and record["device"] == "cpu"
    said = "the section windows made none to learn from"
    assert record["sections"]["overlap"]["said"] == said and f"- overlap: {said}" in text
    for arch, way in (("egnn", "eager"), ("egnn", "sparse"), ("transformer_egnn", "eager"), ("pair_mlp", "numpy"),
                      ("pair_mlp", "eager")):
        assert loop["step_us"][arch][way]["16"] > 0
        loop["step_us"][arch][way]["16"] = None
    assert set(numbers(loop["step_us"])) == {None}
    assert any("CUDA GPU" in why for why in loop["unseen"]) and sections.NOT_REACHED not in loop["unseen"]
    assert set(loop["step_us"]["pair_mlp"]) == {"numpy", "eager", "compiled", "graphs"}
    missed = {name.split(",")[0] for names in loop["unseen"].values() for name in names}
    assert missed == {f"{arch} {way}" for arch, ways in loop["step_us"].items() for way in ways}
    assert "no figure here comes from one" in text and "| egnn | graphs | - | - | - | - | - | - |" in text


def test_windows_a_training_and_half_batches(sections, tmp_path):
    told = {}
    for name in ("windows", "training", "overlap"):
        sections.SECTIONS[name](sections.How("cpu", True, tmp_path, partial(told.__setitem__, name)))
    assert told["windows"]["windows"] > 50
    first = next(iter(told["training"]["windows_per_s"].values()))
    assert all(value > 0 for value in numbers(first["32"])) and set(numbers(first["512"])) == {None}
    assert [row["parts"] for row in told["overlap"]["runs"]] == [2, 1]
    assert all(row["wall_production_s"] > 0 for row in told["overlap"]["runs"])


def test_a_section_that_hangs_or_fails_leaves_what_it_found(gpu, monkeypatch, tmp_path):
    script = tmp_path / "gpu.py"
    script.write_text("import sys, pathlib, time\nname, work = sys.argv[2], pathlib.Path(sys.argv[6])\n"
                      "(work / f'{name}.json').write_text('{\"passed\": 3}')\n"
                      "time.sleep(600) if name == 'overlap' else sys.exit('the driver is gone')\n")
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "BUDGET_S", {"overlap": 10.0, "training": 60.0})
    found = {}
    for name in ("overlap", "training"):
        found[name] = gpu.in_time(name, SimpleNamespace(device="cpu", quick=False, patience=0.5), tmp_path)
        assert found[name]["passed"] == 3
    assert found["overlap"]["said"] == "it was stopped after its 5 s" and found["overlap"]["seconds"] < 60
    assert gpu.complaints({"sections": found}) == [f"overlap: {found['overlap']['said']}",
                                                   "training: the driver is gone"]


def test_tests_are_counted_from_the_report_of_pytest(gpu, sections, tmp_path):
    (tmp_path / "report.xml").write_text(JUNIT)
    found = sections.counted(tmp_path / "report.xml")
    assert found == {"passed": 1, "failed": 2, "failures": ["bad", "worse"], "unseen": {"no CUDA GPU": ["later"]}}
    assert gpu.complaints({"sections": {"cuda_tests": {**found, "said": None}}}) == ["cuda_tests: bad failed",
                                                                                   "cuda_tests: worse failed"]
    assert any("mark.cuda" in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("error, agrees", [(0.0, True), (3e-6, True), (2e-5, False)])
def test_gradients_agree_or_it_is_said(gpu, sections, monkeypatch, error, agrees):
    from kstep.forces import pyscf

    gradient, calls = pyscf.gradient, []

    def off(field, settings):
        calls.append(settings.device)
        slope = gradient(field, settings)
        slope[0, 0] += error * (len(calls) == 2)
        return slope

    monkeypatch.setattr(pyscf, "gradient", off)
    monkeypatch.setattr(sections, "FIELD_MOLECULE", "O")
    found = sections.agreement({"functional": "HF", "basis": "STO-3G"}, ("cpu", "cpu"))
    assert found["gradient_Ha_per_bohr"] == pytest.approx(error, abs=1e-8) and found["agrees"] is agrees
    assert found["largest_gradient_Ha_per_bohr"] > 1e-3  # there is something to agree on
    section = {"said": None, "fields": {"HF": found, "PBE": None}}
    assert len(gpu.complaints({"sections": {"gpu4pyscf": section}})) == (not agrees)


def test_all_sections_fit_into_eight_minutes(gpu, sections):
    assert sum(gpu.BUDGET_S.values()) <= 480 and gpu.BUDGET_S.keys() == sections.SECTIONS.keys()


@pytest.mark.parametrize("words, said", [(("--device", "cpu", "--quick"), "--out"),
                                         (("--device", "cpu", "--out", "gpu.json"), "record of a GPU")])
def test_a_rehearsal_replaces_no_record(gpu, monkeypatch, tmp_path, capsys, words, said):
    (tmp_path / "gpu.json").write_text('{"device": "cuda"}')
    monkeypatch.chdir(tmp_path)
    assert run(gpu, monkeypatch, *words) == 2 and said in capsys.readouterr().err
