"""04: a short training lowers the loss, a resumed one is bit-equal, every lambda has its effect."""

import itertools
import json
import resource
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch

from conftest import run_program
from kstep.errors import UserError
from kstep.files import Claim, sha256
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.network import Network
from kstep.schemas import load_dataset
from kstep.stages import network_training as stage
from kstep.stages.network_training import TrainingSettings, train_network
from kstep.training import losses, normalisation as normalise
from kstep.training.batches import Windows
from kstep.training.dataset import build_dataset
from kstep.training.optimiser import learning_rate
from kstep.training.train_config import TrainConfig
from kstep.training.window_training import train
from springs import METHANOL, WATER, write_trajectory
from trainings import EGNN, JUMP, PAIR_MLP, ROOT, TRANSFORMER, command, make_dataset, prepare, rows_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), "methanol")


@pytest.mark.parametrize("model_config, epochs", [(PAIR_MLP, 30), (JUMP, 20), (TRANSFORMER, 10)])
def test_training_lowers_the_loss(dataset, tmp_path, model_config, epochs):
    outcome = train(**prepare(dataset, model_config, max_epochs=epochs, lr=1e-2, beta2=0.99), out_dir=tmp_path)
    rows = rows_of(tmp_path, "validation")
    assert outcome.reason == "the schedule is through" and len(rows) == epochs
    assert rows[-1]["val_loss"] < 0.5 * rows[0]["val_loss"]
    assert outcome.best["val_loss"] == min(row["val_loss"] for row in rows)
    best = checkpoints.load(tmp_path / "best.pt")
    model = checkpoints.model_from(best)
    assert set(best["normalisation"]) == {name for name, _ in model.named_buffers()} & set(best["state_dict"])
    if model_config.heads.jump:
        assert rows[-1]["dx_rmse_nm"] < rows[-1]["propagator_dx_rmse_nm"]


@pytest.mark.parametrize("model_config", [PAIR_MLP, EGNN, TRANSFORMER.model_copy(update={"dropout": 0.2})])
def test_resume_is_bit_equal(dataset, tmp_path, model_config):
    whole = prepare(dataset, model_config)
    train(**whole, out_dir=tmp_path / "whole", seed=5)
    parts = prepare(dataset, model_config)
    outcome = train(**parts, out_dir=tmp_path / "parts", seed=5, should_stop=lambda step: step == 17)
    assert outcome.steps == 17 and outcome.reason == "stopped by the caller"
    again = prepare(dataset, model_config)
    train(**again, out_dir=tmp_path / "parts", seed=5, resume=checkpoints.load(tmp_path / "parts" / "last.pt"))
    for name in ("best.pt", "last.pt"):
        one, two = (checkpoints.load(tmp_path / run / name)["state_dict"] for run in ("whole", "parts"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert rows_of(tmp_path / "whole", "train", "validation") == rows_of(tmp_path / "parts", "train", "validation")


def test_every_structural_lambda_counts(dataset):
    for name in ("bond", "angle", "dihedral"):
        setup = prepare(dataset, EGNN, **{f"lambda_struct_{name}": 2.0})
        chosen = torch.as_tensor(setup["train_windows"][:16])
        batch, targets = setup["data"].batch(chosen)
        terms = losses.jump_terms(setup["model"], batch, targets, setup["config"])
        term = terms[f"struct_{name}"]
        assert term.item() > 0
        without = losses.total({k: v for k, v in terms.items() if not k.startswith("struct")}, setup["config"])
        added = losses.total(terms, setup["config"]) - without
        assert added.item() == pytest.approx(2.0 * term.item())
        weights = [p for p in setup["model"].parameters() if p.requires_grad]
        gradient = torch.autograd.grad(term, weights, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in gradient)


def test_structural_terms_measure_what_they_say():
    x = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.1, 0.1]], dtype=torch.float64)
    assert torch.allclose(losses._lengths(x, torch.tensor([[0, 1]])), torch.tensor([0.1], dtype=torch.float64))
    assert torch.rad2deg(losses._angles(x, torch.tensor([[0, 1, 2]]))) == pytest.approx(90.0)
    cosine, sine = losses._torsion(x, torch.tensor([[0, 1, 2, 3]]))
    import mdtraj
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(4):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    phi = mdtraj.compute_dihedrals(mdtraj.Trajectory(x.numpy()[None], topology), [[0, 1, 2, 3]])[0, 0]
    assert float(torch.atan2(sine, cosine)) == pytest.approx(float(phi), abs=1e-5)


def test_reference_energies_reproduce_the_mean(dataset):
    setup = prepare(dataset, EGNN)
    elements, reference, residual = normalise.reference_energies(setup["data"], torch.as_tensor(setup["train_windows"]))
    assert elements.tolist() == [1, 6, 8] and abs(residual.mean()) < 1e-6
    assert reference @ [4, 1, 1] == pytest.approx(-500.0, abs=50.0)


def test_schedule_warms_up_and_ends_at_zero():
    config = TrainConfig(lr=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, config.lr, config.warmup_ratio) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_weights_without_a_head_are_refused():
    with pytest.raises(UserError, match="no jump head"):
        losses.check_weights(TrainConfig(lambda_struct_bond=1.0), PAIR_MLP.heads)
    with pytest.raises(UserError, match="nothing to train"):
        losses.check_weights(TrainConfig(lambda_energy=0, lambda_force=0), PAIR_MLP.heads)


def test_pair_mlp_refuses_several_molecules(tmp_path):
    paths = {"water": write_trajectory(tmp_path / "w.npz", WATER, n_segments=2),
             "methanol": write_trajectory(tmp_path / "m.npz", METHANOL, n_segments=2)}
    arrays, metadata = build_dataset(paths, 4, max_samples=20)
    model = build_model(PAIR_MLP, Windows.molecule_of(0, arrays))
    with pytest.raises(UserError, match="learns one molecule"):
        normalise.fit(model, Windows(arrays, metadata), torch.arange(len(arrays["frame"])))


def run_04(*arguments):
    return run_program(*command(*arguments))


def test_04_trains_and_resumes(dataset, tmp_path):
    done = run_04(dataset, tmp_path)
    assert done.returncode == 0, done.stderr
    arrays, _ = load_dataset(dataset / "dataset_k4.npz")
    molecule = Windows.molecule_of(0, arrays)
    network = Network.load(tmp_path / "best.pt", molecule["numbers"], molecule["masses"], molecule["bonds"],
                           dt_fs=0.5, k_steps=4, method="springs")
    assert network.metadata["arch"] == "pair_mlp" and network.spans == [4, 2, 1]
    assert network.metadata["true_calls_training"] > 0
    x = arrays["x_t"].reshape(-1, 6, 3)[:4]
    assert np.isfinite(network.energy_and_forces(x)[0]).all()
    resumed = run_04(dataset, tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """settings(**changes) of a training that is cut after 3 of its 6 steps in `out_dir`, and that folder."""
    out_dir = tmp_path_factory.mktemp("trained")

    def settings(**changes):
        config = {key: changes.pop(key) for key in list(changes) if key in TrainConfig.model_fields}
        return TrainingSettings(**{**dict(
            dataset=dataset / "dataset_k4.npz", model_config=PAIR_MLP, out_dir=out_dir, max_steps=3, progress=False,
            config=TrainConfig(**{"batch_size": 16, "max_epochs": 2, **config}),
            splits=(dataset / "train.json", dataset / "val.json")), **changes})

    train_network(settings())
    return settings, out_dir


def copied(out_dir, to):
    shutil.copytree(out_dir, to, dirs_exist_ok=True)
    return to


@pytest.mark.parametrize("change, words", [
    ({"lr": 0.5}, "train.lr was 0.003 and is 0.5"), ({"batch_size": 8}, "train.batch_size was 16 and is 8"),
    ({"lambda_force": 3.0}, "train.lambda_force was 10.0 and is 3.0"), ({"seed": 7}, "seed was 0 and is 7"),
    ({"frozen": ("1",)}, "frozen was"), ({"splits": None}, "splits.train was"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_another_training_is_no_continuation(trained, tmp_path, change, words):
    settings, out_dir = trained
    if "splits" in change:

        train, val = settings().splits
        some = json.loads(train.read_text())
        some["blocks"] = some["blocks"][:-1]
        (tmp_path / "few.json").write_text(json.dumps(some))
        change = {"splits": (tmp_path / "few.json", val)}
    before = {p.name: p.read_bytes() for p in out_dir.iterdir()}
    for resume in (True, False):
        with pytest.raises(UserError, match=words):
            train_network(settings(resume=resume, max_steps=6, **change))
    assert {p.name: p.read_bytes() for p in out_dir.iterdir()} == before


def test_more_steps_are_the_same_training(trained, tmp_path):
    settings, out_dir = trained
    done = train_network(settings(resume=True, max_steps=5, log_interval_steps=1, threads=1,
                                  out_dir=copied(out_dir, tmp_path)))
    assert done.steps == 5


def test_a_finished_training_is_the_result_of_the_same_command(trained, monkeypatch):
    settings, out_dir = trained
    before = {p.name: p.read_bytes() for p in out_dir.iterdir()}
    monkeypatch.setattr(stage, "train", None)
    again = train_network(settings())
    assert again.steps == 3 and again.best["val_loss"] == json.loads(before["training.json"])["best"]["val_loss"]
    with pytest.raises(UserError, match="of another length; --resume goes on"):
        train_network(settings(max_steps=6))
    assert {p.name: p.read_bytes() for p in out_dir.iterdir()} == before


def test_what_is_overwritten_is_kept_in_another_folder(trained, tmp_path):
    settings, out_dir = trained
    out = copied(out_dir, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out_dir.iterdir()}
    train_network(settings(out_dir=out, overwrite=True, seed=5))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out.backup-1").iterdir()} == before
    assert checkpoints.load(out / "best.pt")["fingerprint"]["seed"] == 5 and (out / "notes.txt").exists()


def test_two_trainings_into_one_folder_do_not_mix(trained, tmp_path):
    settings, _ = trained
    with Claim(tmp_path / "out", tmp_path / "out"), pytest.raises(UserError, match="another run is writing"):
        train_network(settings(out_dir=tmp_path / "out"))


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_training_killed_at_its_first_checkpoint_goes_on(trained, tmp_path, monkeypatch, name):
    settings, _ = trained
    save, length = checkpoints.save, {"max_steps": 3}

    def killed(path, *more, **how):
        if path.name == name:
            raise KeyboardInterrupt
        save(path, *more, **how)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_network(settings(out_dir=tmp_path / "cut", **length))
    assert (tmp_path / "cut/last.pt").exists() == (name == "best.pt")
    train_network(settings(out_dir=tmp_path / "cut", resume=True, **length))
    train_network(settings(out_dir=tmp_path / "whole", **length))
    cut, whole = (checkpoints.load(tmp_path / each / "best.pt")["state_dict"] for each in ("cut", "whole"))
    assert all(torch.equal(cut[key], whole[key]) for key in whole)
    for last in (tmp_path / "cut").glob("last*.pt"):
        last.unlink()
    with pytest.raises(UserError, match="holds best.pt of a training that left no last.pt to go on from"):
        train_network(settings(out_dir=tmp_path / "cut", resume=True, **length))


def test_a_full_disk_ends_a_training_that_can_be_resumed(trained, tmp_path):
    """Too small for the weights: last.pt stays the one before, and its path is named."""
    settings, out_dir = trained
    out = copied(out_dir, tmp_path)
    before, soft = (out / "last.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, soft[1]))
    try:
        with pytest.raises(OSError, match="cannot be written") as failure:
            train_network(settings(out_dir=out, resume=True, max_steps=5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert failure.value.filename in [str(out / name) for name in ("last.pt", "best.pt")]
    assert (out / "last.pt").read_bytes() == before
    (out / "metrics.jsonl").open("a").write('{"kind": "tr')  # cut by the disk
    assert train_network(settings(out_dir=out, resume=True, max_steps=5)).steps == 5
    whole = [line for line in (out / "metrics.jsonl").read_text().splitlines() if line != '{"kind": "tr']
    assert [json.loads(line) for line in whole][-1]["kind"] == "end"


def test_04_refuses_in_one_sentence(dataset, tmp_path, monkeypatch, capsys):
    """Run in this process, since importing torch takes longer than the refusal."""
    setup = prepare(dataset, PAIR_MLP)
    train(**setup, out_dir=tmp_path, max_steps=2)
    monkeypatch.syspath_prepend(str(ROOT / "src"))

    def refused(words, *more, model="arch: pair_mlp\npair_hidden: [24, 24]\n"):
        monkeypatch.setattr(sys, "argv", [str(part) for part in command(dataset, tmp_path, *more, model=model)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and words in printed, printed

    refused("did you mean 'batch_size'", "--set", "batchsize=3")
    refused("holds best.pt; --resume goes on with it")
    refused("no parameter starts so", "--freeze-layers", "layer.0", "--out-dir", tmp_path / "new")
    last = checkpoints.load(tmp_path / "last.pt")
    for change, words in [({"dt_fs": 0.25}, "was trained at dt_fs 0.25, the dataset has dt_fs 0.5"),
                          ({"k_steps": 12}, "was trained at k = 12, the dataset has k = 4"),
                          ({}, "was trained on another dataset")]:
        checkpoints.save(tmp_path / "last.pt", {**last, **change})
        refused(words, "--resume")
    checkpoints.save(tmp_path / "last.pt", {**last, "data_sha256": sha256(dataset / "dataset_k4.npz")})
    refused("another model config", "--resume", model="arch: pair_mlp\npair_hidden: [8]\n")
    refused("would be overwritten", "--pretrained", tmp_path / "last.pt")
    (tmp_path / "last.pt").rename(tmp_path / "first.pt")
    refused("another architecture or size", "--pretrained", tmp_path / "first.pt", "--overwrite",
            model="arch: pair_mlp\npair_hidden: [8]\n")
