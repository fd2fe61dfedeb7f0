"""How samples, labels and the cost of learning grow with the molecule: one figure, docs/scaling.svg.

Puts together what stands in benchmarks/results: cold_start.json (labels and CPU seconds of learning),
exact_and_fast.json (samples of the slowest torsion per 1000 true calls of the sampler that is taken by itself, median
over seeds) and crest.json; and, with --run, finished runs of other molecules.  Kept in benchmarks/results/scaling.json.

    python benchmarks/scaling.py [--run outputs/ethyl_acetate.npz ...]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from judging import sampled
from kstep.files import write_json_compact, write_text_atomic
from kstep.schemas import load_trajectory
from kstep.study.benchmark.speedup import median_of
from readme import FAINT, OURS, text
from running import RESULTS, ROOT, provenance

RESULT, PICTURE = RESULTS / "scaling.json", ROOT / "docs" / "scaling.svg"
PANELS = {"torsion_per_1000_calls": "samples of the slowest torsion per 1000 true calls",
          "labels": "true calls to learn", "cpu_s_training": "CPU seconds to learn"}
KEYS = ("atoms", *PANELS)
WIDTH, PANEL, TOP, LEFT, RIGHT, GAP, BELOW = 760, 150, 66, 64, 24, 46, 50
LETTER = 6.8  # width of one at size 12


def collect(read) -> dict[str, dict]:
    """{molecule: {"atoms", and of PANELS what was measured}}; read(name): what a benchmark has published, or {}."""
    found: dict[str, dict] = {}
    for name, row in read("cold_start").get("molecules", {}).items():
        found[name] = {"atoms": row["atoms"], "labels": row["true_calls"], "cpu_s_training": row["cpu_s"]}
    for name, entry in read("exact_and_fast").items():
        first = next((s for s in entry.get("samplers", []) if s["call_cost_s"] is None), None)
        rate = first and median_of([seed["torsion_per_1000_calls"] for seed in first["seeds"]])
        if rate and name in found:  # a benchmark's record does not say how many atoms there are
            found[name]["torsion_per_1000_calls"] = rate["value"]
    for name, row in read("crest").get("molecules", {}).items():
        found[name] = {key: row[key] for key in KEYS}
    return found


def svg(molecules: dict[str, dict]) -> str:
    """The picture: a panel for each of PANELS, a point for each molecule that has it, on logarithmic axes of y."""
    height = TOP + len(PANELS) * PANEL + (len(PANELS) - 1) * GAP + BELOW
    sizes = [row["atoms"] for row in molecules.values()]
    least, most = min(sizes) - 3, max(sizes) + 7
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
           'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
           "<title>Samples per 1000 true calls, labels and CPU seconds of learning against the number of atoms</title>",
           f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
           text(16, 30, "What a larger molecule costs", size=17, bold=True)]

    def across(n_atoms: float) -> float:
        return LEFT + (n_atoms - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    for number, (key, words) in enumerate(PANELS.items()):
        top = TOP + number * (PANEL + GAP)
        out += _panel({name: row for name, row in molecules.items() if row.get(key)}, key, words, top, across)
    bottom = height - BELOW
    out += [text(across(n), bottom + 20, str(n), size=13, anchor="middle") for n in sorted(set(sizes))]
    out += [text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, "atoms", size=13, anchor="middle"), "</svg>"]
    return "\n".join(out) + "\n"


def _panel(molecules: dict[str, dict], key: str, words: str, top: float, across) -> list[str]:
    """Axis, title and points of one panel, its top at `top`; one that nobody has measured says so."""
    out = [text(16, top - 10, words, size=13, bold=True)]
    if not molecules:
        return [*out, text(LEFT, top + PANEL / 2, "not measured", size=13)]
    values = [row[key] for row in molecules.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def up(value: float) -> float:
        return top + PANEL * (high - math.log10(value)) / (high - low)

    for exponent in range(low, high + 1):
        y = up(10.0**exponent)
        out += [f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{FAINT}"/>',
                text(LEFT - 8, y + 4, f"{10.0**exponent:g}", size=13, anchor="end")]
    points = {name: (across(row["atoms"]), up(row[key])) for name, row in molecules.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points.values()]
    for name, (x, y) in points.items():
        label = f"{name.replace('_', ' ')} {float(f'{molecules[name][key]:.3g}'):g}"
        across_px, at, box = _room(x, y, len(label) * LETTER, taken)
        taken.append(box)
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{OURS}"/>',
                text(*at, label, size=12, anchor=across_px)]
    return out


def _room(x: float, y: float, width: float, taken: list) -> tuple[str, tuple[float, float], tuple]:
    """Where a label of this width goes beside a point: its anchor, its place, and the box that it fills."""
    places = []
    for anchor, at, left in (("start", (x + 9, y + 4), x + 9), ("end", (x - 9, y + 4), x - 9 - width),
                             ("middle", (x, y - 11), x - width / 2), ("middle", (x, y + 20), x - width / 2)):
        places.append((anchor, at, (left, at[1] - 11, left + width, at[1] + 3)))
    free = [place for place in places if LEFT <= place[2][0] and place[2][2] <= WIDTH
            and not any(a < place[2][2] and place[2][0] < c and b < place[2][3] and place[2][1] < d
                        for a, b, c, d in taken)]
    return (free or places)[0]


def read(name: str) -> dict:
    """What a benchmark has published; {} where it has not."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> None:
    """Collect, keep and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="finished runs with --learn of other ones")
    args = parser.parse_args()
    molecules = read("scaling").get("molecules", {})
    for name, row in collect(read).items():
        molecules[name] = {**molecules.get(name, {}), **row}
    for path in args.run:
        run = load_trajectory(path)
        figures = sampled(run)
        molecules[run.metadata["molecule"]] = {key: figures[key] for key in KEYS}
    if not molecules:
        raise SystemExit("error: no benchmark has published a molecule yet; run cold_start.py or crest.py first")
    write_json_compact(RESULT, {"molecules": molecules, **provenance()})
    write_text_atomic(PICTURE, svg(json.loads(RESULT.read_text())["molecules"]))
    for name, row in molecules.items():
        print(name, row)
    print(PICTURE)


if __name__ == "__main__":
    main()
