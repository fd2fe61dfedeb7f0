"""One step of a learned map at equal horizon: our jump head beside direct predictors, on the same windows of ethanol.

    ours       04_train.py with configs/model.yaml: the remainder beyond the bounded propagator, from (x, v, F_true)
    EGNN       predicts the position from (x, v), with F_true as a further input, or beyond x + v tau + F tau^2 / 2m
    EGNO       predicts eight positions up to the horizon from (x, v)

The peers are benchmarks/peer_networks.py, written from their papers; with --egno PATH the authors' own EGNO
(github.com/MinkaiXu/EGNO, MIT) is trained beside them from a clone.  Every network has the same budget of CPU time and
two learning rates to choose from.  Judged on replicas that no training saw.  Writes benchmarks/results/peers.json.

    python benchmarks/peers.py --egno /tmp/egno
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

import ethanol
from guides import put
from kstep.files import write_json_atomic, write_json_compact
from kstep.schemas import load_dataset, load_trajectory, save_dataset
from kstep.topology import find_angles
from kstep.training.optimiser import MovingAverage, learning_rate
from kstep.training.splits import select
from kstep.units import NM_PER_ANGSTROM, PS_PER_FS
from peer_networks import Predictor
from running import RESULTS, ROOT, machine, provenance

RESULT, GUIDE, MARK = RESULTS / "peers.json", ROOT / "MODELS.md", "<!-- peers -->"
WORK = ROOT / "outputs" / "peers"
BUDGET_S = 20
OUR_LRS, PEER_LRS = (1e-2, 3e-3), (3e-3, 1e-3)
BATCH, TIMES = 32, 8
NO_FORCE = 1e-9  # kJ/mol/nm per nm/ps: in the place of a force a trace of the velocity, which the network knows already
PEERS = {"egnn": "EGNN, (x, v)", "egnn_force": "EGNN, (x, v, F_true)",
         "egnn_remainder": "EGNN, (x, v, F_true), beyond Taylor",
         "egno": "EGNO, (x, v), 8 times", "egno_authors": "EGNO, the authors' code",
         "egno_long": "EGNO, (x, v), 8 times, six times the budget"}
LONG, LONG_K = 6, 16  # budgets of egno_long, and its one horizon


class Windows:
    """Windows of one molecule, in Angstrom: x, v tau, F tau^2 / 2m (S,N,3) and future positions (T,S,N,3)."""

    def __init__(self, part: str, k: int, split: Path | None):
        arrays, metadata = load_dataset(ethanol.dataset(part, k))
        chosen = (np.arange(len(arrays["k_steps"])) if split is None
                  else select(arrays, metadata, json.loads(split.read_text())))
        chosen = chosen[arrays["k_steps"][chosen] == k]
        run = load_trajectory(ethanol.WORK / part / "ethanol" / "trajectory.npz")
        n, tau = len(arrays["atom_types"]), k * ethanol.DT_FS * PS_PER_FS
        x, v, f, end = (arrays[key].reshape(-1, n, 3)[chosen] for key in ("x_t", "v_t", "f_t", "x_tk"))
        self.numbers, self.bonds = arrays["atom_types"], arrays["bonds"]
        future = np.stack([run.pos[arrays["frame"][chosen] + k * i // TIMES] for i in range(1, TIMES + 1)])
        assert np.array_equal(future[-1], end)
        centre = x.mean(1, keepdims=True)
        size = 1.0 / NM_PER_ANGSTROM
        self.x, self.v = self._tensor((x - centre) * size), self._tensor(v * tau * size)
        self.f = self._tensor(f * tau**2 / 2 / arrays["masses"][:, None] * size)
        self.future = self._tensor((future - centre) * size)
        elements = np.unique(self.numbers)
        self.elements = self._tensor(self.numbers[:, None] == elements)
        edges = np.zeros((n, n, 2))
        for kind, pairs in enumerate((self.bonds, find_angles(n, self.bonds)[:, [0, 2]])):
            for i, j in pairs:
                edges[i, j, kind] = edges[j, i, kind] = 1
        self.edges = self._tensor(edges)

    @staticmethod
    def _tensor(array):
        return torch.as_tensor(np.asarray(array), dtype=torch.float32)


class Authors(torch.nn.Module):
    """The authors' EGNO with the inputs of its main_md17_no.py; edges are bonds and pairs with a common neighbour."""

    def __init__(self, clone: Path, windows: Windows):
        super().__init__()
        sys.path.insert(0, str(clone))
        from model.egno import EGNO

        self.net = EGNO(in_node_nf=2, in_edge_nf=5, hidden_nf=32, n_layers=4, with_v=True, use_time_conv=True,
                        num_modes=2, num_timesteps=TIMES)
        z = torch.as_tensor(windows.numbers, dtype=torch.float32)
        self.rows, self.columns = (windows.edges.sum(-1) > 0).nonzero(as_tuple=True)
        kind = 1.0 + windows.edges[self.rows, self.columns, 1]
        self.kinds = torch.stack([z[self.rows], z[self.columns], kind, torch.zeros_like(kind)], 1)
        self.z = (z / z.max())[:, None]

    def forward(self, elements, x, v, f, edges):
        S, N, _ = x.shape
        shift = torch.arange(S).repeat_interleave(len(self.rows)) * N
        rows, columns = self.rows.repeat(S) + shift, self.columns.repeat(S) + shift
        centre = x.mean(1, keepdim=True).expand_as(x).reshape(-1, 3)
        x, v = x.reshape(-1, 3), v.reshape(-1, 3)
        nodes = torch.cat([v.norm(dim=1, keepdim=True), self.z.repeat(S, 1)], 1)
        features = torch.cat([self.kinds.repeat(S, 1), (x[rows] - x[columns]).square().sum(1, keepdim=True)], 1)
        x, v, _ = self.net(x, nodes, [rows, columns], features, v, loc_mean=centre)
        return x.reshape(TIMES, S, N, 3), v.reshape(TIMES, S, N, 3)


def rmse(x, target) -> float:
    """Per component, Angstrom."""
    return float((x - target).double().square().mean().sqrt())


def build(name: str, data: Windows, clone: Path | None) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "egno_authors":
        return Authors(clone, data)
    with_force = name in ("egnn_force", "egnn_remainder")
    return Predictor(data.elements.shape[1], n_times=TIMES if name.startswith("egno") else 1, with_force=with_force)


def ends(net, data: Windows, rows, remainder: bool):
    """Predicted and true positions (T,s,N,3), of the last time alone where a network predicts no other."""
    x, v, f = data.x[rows], data.v[rows], data.f[rows]
    found = net(data.elements, x, v, f, data.edges)[0]
    if remainder:
        found = found - x + (x + v + f)
    return found, data.future[-len(found):, rows]


def fit(net, train: Windows, judged: Windows, remainder: bool, lr: float, budget_s: float) -> dict:
    """Adam under warm-up and cosine for a budget of CPU seconds; averaged weights, judged at the end."""
    weights = list(net.parameters())
    optimiser, average = torch.optim.Adam(weights, lr=lr), MovingAverage(weights, 0.995)
    rng, done, started = np.random.default_rng(0), 0, time.process_time()
    while (share := (time.process_time() - started) / budget_s) < 1:
        rows = torch.as_tensor(rng.integers(len(train.x), size=BATCH))
        found, target = ends(net, train, rows, remainder)
        loss = (found - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(round(1000 * share), 1000, lr, 0.03)
        optimiser.step()
        average.update(done)
        done += 1
        if not math.isfinite(float(loss.detach())):
            return {"dx_rmse_A": math.inf, "steps": done, "lr": lr}
    average.keep()
    with torch.no_grad():
        parts = [ends(net, judged, rows, remainder) for rows in torch.arange(len(judged.x)).split(256)]
    last = [torch.cat([part[i][-1] for part in parts]) for i in (0, 1)]
    return {"dx_rmse_A": rmse(*last), "steps": done, "lr": lr, "parameters": sum(w.numel() for w in weights)}


def peer(name: str, k: int, windows: dict, clone: Path | None) -> dict:
    """A peer at one horizon; the learning rate is chosen on the validation blocks."""
    kept = WORK / f"{name}_k{k}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    remainder = name == "egnn_remainder"

    def once(judged, lr, budget_s):
        return fit(build(name, windows["train"], clone), windows["train"], windows[judged], remainder, lr, budget_s)

    tried = {lr: once("val", lr, BUDGET_S / ethanol.SHARE)["dx_rmse_A"] for lr in PEER_LRS}
    found = once("test", min(tried, key=tried.get), BUDGET_S * (LONG if name == "egno_long" else 1))
    write_json_atomic(kept, found)
    print(f"k = {k}, {name}: {found}", flush=True)
    return found


def without_force(part: str, k: int) -> Path:
    """The dataset with its input forces taken away; what is to be predicted stays."""
    out = WORK / part / f"no_force_k{k}.npz"
    if not out.exists():
        arrays, metadata = load_dataset(ethanol.dataset(part, k))
        arrays["f_t"] = NO_FORCE * arrays["v_t"]
        save_dataset(out, arrays, metadata)
    return out


def ours(k: int, data: dict, with_force: bool) -> dict:
    """The jump head at one horizon, and its propagator without the network."""
    datasets = [ethanol.dataset(part, k) if with_force else without_force(part, k) for part in ("train", "test")]
    out = WORK / f"ours{'' if with_force else '_no_force'}_k{k}"
    training = ethanol.Training(out, datasets[0], ROOT / "configs/model.yaml", "configs/train.yaml", data["splits"],
                                OUR_LRS)
    done = training.within(BUDGET_S)
    found = ethanol.errors(out / "final" / "last.pt", datasets[1])
    size = 1.0 / NM_PER_ANGSTROM
    return {"dx_rmse_A": found["dx_rmse_nm"] * size, "propagator_A": found["propagator_dx_rmse_nm"] * size,
            "steps": done["steps"], "lr": done["lr"], "parameters": done["parameters"], "cpu_s": done["cpu_s"]}


def table(data: dict) -> str:
    """The table of MODELS.md."""
    horizons = data["horizons"]

    def row(label, values):
        return f"| {label} | " + " | ".join("-" if v is None else f"{v:.1e}" for v in values) + " |"

    lines = [f"| position error of one step, A, after {data['budget_cpu_s']:g} CPU s of training | "
             + " | ".join(f"{h['tau_fs']:g} fs" for h in horizons) + " |", "|---" * (len(horizons) + 1) + "|",
             row("x + v tau", [h["straight"] for h in horizons]),
             row("x + v tau + F tau^2 / 2m", [h["taylor"] for h in horizons]),
             row("our propagator alone", [h["ours"]["propagator_A"] for h in horizons]),
             row("**our jump head, (x, v, F_true)**", [h["ours"]["dx_rmse_A"] for h in horizons]),
             row("our jump head without F_true", [h["ours_no_force"]["dx_rmse_A"] for h in horizons])]
    for name, title in PEERS.items():
        if any(name in h["peers"] for h in horizons):
            lines.append(row(title, [h["peers"].get(name, {}).get("dx_rmse_A") for h in horizons]))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--egno", type=Path, help="clone of github.com/MinkaiXu/EGNO")
    args = parser.parse_args()
    for part in ("train", "test"):
        (WORK / part).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data, horizons = ethanol.data(), []
    train_json, val_json = data["splits"]
    for k in ethanol.KS:
        windows = {"train": Windows("train", k, train_json), "val": Windows("train", k, val_json),
                   "test": Windows("test", k, None)}
        test = windows["test"]
        left_out = {"egno_authors": not args.egno, "egno_long": k != LONG_K}
        names = [name for name in PEERS if not left_out.get(name)]
        horizons.append({"k": k, "tau_fs": k * ethanol.DT_FS,
                         "windows": {part: len(w.x) for part, w in windows.items()},
                         "straight": rmse(test.x + test.v, test.future[-1]),
                         "taylor": rmse(test.x + test.v + test.f, test.future[-1]),
                         "ours": ours(k, data, True), "ours_no_force": ours(k, data, False),
                         "peers": {name: peer(name, k, windows, args.egno) for name in names}})
        write_json_compact(RESULT, {"molecule": "ethanol", "method": "GFN2-xTB", "machine": machine(), **provenance(),
                                   "budget_cpu_s": BUDGET_S, "batch": BATCH, "our_lrs": OUR_LRS, "peer_lrs": PEER_LRS,
                                   "horizons": horizons})
    found = json.loads(RESULT.read_text())
    put(GUIDE, MARK, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
