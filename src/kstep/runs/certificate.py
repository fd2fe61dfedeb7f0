"""A running certificate: how far the network's energy and force lie from the truth along a run."""

from __future__ import annotations

import math

from kstep.units import NM_PER_ANGSTROM

MEMORY_MACRO_STEPS = 50  # pairs count as recent for about so long
FEWEST_PAIRS = 10  # before this many, a spread says nothing

_NOTHING = {"pairs": 0.0, "mean": 0.0, "squares": 0.0, "force": 0.0}


class Certificate:
    """Over all pairs of truth and network so far, and over the recent ones:

        mean = <d>,  spread^2 = <(d - <d>)^2>,  d = E_true - E_ML       kJ/mol
        rmse^2 = <|F_true - F_ML|^2 / 3N>                               kJ/mol/A

    The recent ones are weighted exp(-age / 50 macro-steps), so that a molecule which walks off what
    the network knows is seen at once even after a long good run.  `counts` is plain JSON: it goes
    into the metadata and the restart file.
    """

    def __init__(self, counts: dict | None = None):
        self.counts = counts or {"all": dict(_NOTHING), "recent": dict(_NOTHING)}

    def add(self, state) -> None:
        """Count one macro-step of every replica of a State that holds the network's energy and forces."""
        self.add_pairs(state.energy - state.network_energy, state.forces - state.network_forces)

    def add_pairs(self, energy_error, force_error) -> None:
        """Count R pairs by truth less network: energy_error (R,) kJ/mol, force_error (R,N,3) kJ/mol/nm."""
        d, force = energy_error, (force_error**2).mean(axis=(1, 2))
        new = {"pairs": float(len(d)), "mean": float(d.mean()), "squares": float(((d - d.mean()) ** 2).sum()),
               "force": float(force.sum())}
        keep = math.exp(-1.0 / MEMORY_MACRO_STEPS)
        aged = {key: value if key == "mean" else keep * value for key, value in self.counts["recent"].items()}
        self.counts["recent"] = _merge(aged, new)
        self.counts["all"] = _merge(self.counts["all"], new)

    def figures(self, which: str = "all") -> dict:
        """mean and spread of E_true - E_ML in kJ/mol, force_rmse in kJ/mol/A, pairs; `which`: all or recent."""
        c = self.counts[which]
        n = max(c["pairs"], 1.0)
        return {"pairs": round(c["pairs"]), "mean_kJ_per_mol": c["mean"],
                "spread_kJ_per_mol": math.sqrt(c["squares"] / n),
                "force_rmse_kJ_per_mol_A": math.sqrt(c["force"] / n) * NM_PER_ANGSTROM}

    def past(self, max_energy_spread_kJ_per_mol: float | None, max_force_rmse_kJ_per_mol_A: float | None) -> str | None:
        """What lies past its tolerance (None: no limit), in words; None if nothing does."""
        if not self.counts["all"]["pairs"] >= FEWEST_PAIRS:
            return None
        for which, words in (("recent", "of late"), ("all", "over the run")):
            f = self.figures(which)
            for value, limit, name, unit in (
                    (f["spread_kJ_per_mol"], max_energy_spread_kJ_per_mol, "the spread of E_true - E_ML", "kJ/mol"),
                    (f["force_rmse_kJ_per_mol_A"], max_force_rmse_kJ_per_mol_A, "the force error", "kJ/mol/A")):
                if limit is not None and not value <= limit:
                    return f"{name} is {value:.3g} {unit} {words}, past its tolerance of {limit:g}"
        return None


def _merge(a: dict, b: dict) -> dict:
    """Sums of two disjoint sets as one: Chan, Golub, LeVeque, Am. Stat. 37, 242 (1983)."""
    pairs = a["pairs"] + b["pairs"]
    share, apart = b["pairs"] / pairs, b["mean"] - a["mean"]
    return {"pairs": pairs, "mean": a["mean"] + share * apart,
            "squares": a["squares"] + b["squares"] + a["pairs"] * share * apart**2, "force": a["force"] + b["force"]}
