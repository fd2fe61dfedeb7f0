"""Which windows train, validate and test: by molecule, or by time block within each molecule.

Interleaved frames flatter a network, since neighbours in time are almost copies.  With three or
more molecules whole molecules are held out; with fewer, blocks of consecutive time are, the
last ones of each replica and role.  A split file reads

    {"molecules": ["ethanol"], "blocks": [0, 1, 2]}        `blocks` only for splits in time
"""

from __future__ import annotations

import numpy as np

from kstep.errors import UserError, did_you_mean


def make_splits(names: list[str], n_blocks: int, *, train_frac: float = 0.8, val_frac: float = 0.1,
                by: str = "auto", seed: int = 0) -> dict[str, dict]:
    """{"train", "val", "test"} as written to the split files; what is left after train and val is test."""
    if not (0 < train_frac < 1 and 0 < val_frac < 1 and train_frac + val_frac <= 1 + 1e-9):
        raise UserError(f"--train-frac {train_frac} and --val-frac {val_frac} must be above 0 and sum to at most 1")
    if by == "auto":
        by = "molecule" if len(names) >= 3 else "time"
    if by == "time":
        train, val, test = _cut(n_blocks, train_frac, val_frac)
        return {part: {"molecules": list(names), "blocks": list(map(int, blocks))}
                for part, blocks in zip(("train", "val", "test"), (train, val, test))}
    if len(names) < 2:
        raise UserError("one molecule cannot be split by molecule; use --split-by time")
    order = np.random.default_rng(seed).permutation(len(names))
    return {part: {"molecules": sorted(names[order[i]] for i in rows)}
            for part, rows in zip(("train", "val", "test"), _cut(len(names), train_frac, val_frac))}


def _cut(n: int, train_frac: float, val_frac: float) -> tuple[range, range, range]:
    """0..n-1 in three stretches; validation holds at least one, test one when there is a share for it."""
    n_val = max(1, round(val_frac * n))
    n_test = max(1, round((1 - train_frac - val_frac) * n)) if train_frac + val_frac < 1 - 1e-9 and n > 2 else 0
    n_train = n - n_val - n_test
    if n_train < 1:
        raise UserError(f"{n} parts are too few for --train-frac {train_frac} and --val-frac {val_frac}")
    return range(n_train), range(n_train, n_train + n_val), range(n_train + n_val, n)


def select(arrays: dict, metadata: dict, split: dict, where: str = "split") -> np.ndarray:
    """Indices (S,) of the dataset's windows that belong to a split."""
    if not isinstance(split, dict) or not isinstance(split.get("molecules"), list):
        raise UserError(f'{where} is not a split: it must read {{"molecules": [...]}} (02_make_dataset.py writes it)')
    unknown = set(split) - {"molecules", "blocks"}
    if unknown:
        key = min(unknown)
        raise UserError(f"{where}: unknown key '{key}'{did_you_mean(key, ['molecules', 'blocks'])}")
    blocks = split.get("blocks", [])
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise UserError(f"{where}: blocks must be a list of whole numbers")
    known = [m["name"] for m in metadata["molecules"]]
    for name in split["molecules"]:
        if name not in known:
            raise UserError(f"{where}: molecule '{name}' is not in the dataset{did_you_mean(name, known)}")
    inside = np.isin(arrays["molecule_id"], [known.index(name) for name in split["molecules"]])
    if "blocks" in split:
        inside &= np.isin(arrays["block"], split["blocks"])
    return np.flatnonzero(inside)
