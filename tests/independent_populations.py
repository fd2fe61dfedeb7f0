"""Populations of a chain X-C-C-O-H from a run file, with numpy alone: what kstep's own analysis is held against.

    python tests/independent_populations.py run.npz I J K L H       # the atoms of the chain, in order

Each torsion is trans (beyond 120 degrees), gauche+ or gauche-; mirror images are one conformer.  The error of a
population is the scatter of the chains' means.
"""

import json
import sys

import numpy as np


def torsion(x, a, b, c, d):
    """Degrees, from the projections of the outer bonds on the plane across the middle one."""
    axis = (x[:, c] - x[:, b]) / np.linalg.norm(x[:, c] - x[:, b], axis=1, keepdims=True)
    u, v = x[:, a] - x[:, b], x[:, d] - x[:, c]
    u, v = (w - (w * axis).sum(1, keepdims=True) * axis for w in (u, v))
    return np.degrees(np.arctan2((np.cross(axis, u) * v).sum(1), (u * v).sum(1)))


def well(angle):
    return np.where(np.abs(angle) > 120, "t", np.where(angle > 0, "+", "-"))


def populations(path, chain):
    with np.load(path, allow_pickle=False) as run:
        segments = json.loads(str(run["metadata"]))["segments"]
        kept = np.array([s["role"] in ("train", "reference") for s in segments])[run["segment"]]
        x, replica = run["pos"][kept], run["replica"][kept]
    i, j, k, last, h = chain
    names = np.char.add(well(torsion(x, i, j, k, last)), well(torsion(x, j, k, last, h)))
    mirrored = np.array([name.translate(str.maketrans("+-", "-+")) for name in names])
    names = np.where(names < mirrored, names, mirrored)
    shares = {}
    for name in np.unique(names):
        means = np.array([(names[replica == r] == name).mean() for r in np.unique(replica)])
        shares[str(name)] = (float((names == name).mean()), float(means.std(ddof=1) / np.sqrt(len(means))))
    return shares


if __name__ == "__main__":
    print(json.dumps(populations(sys.argv[1], [int(a) for a in sys.argv[2:]])))
