"""docs/growth.md and its figure, of what benchmarks/growth.py keeps."""

from __future__ import annotations

import textwrap

import numpy as np

from growth_limits import ATOMS, CORES, HALVES, TRUTHS, WORKERS, Costs, limits, stops_at
from guides import table
from kstep.forces.dask_pool import calls_per_task
from readme import FAINT, INK, text

FEW_AND_MANY = (100, 10_000)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BELOW = 760, 470, 70, 66, 110, 50


def svg(record: dict) -> str:
    """Calls per second against workers, both logarithmic: a line for each truth, solid with the network on 64 cores,
    dashed on 2; rings are what was measured.
    """
    costs = Costs(**record["costs"])
    low, high = -2, 5

    def across(n: float) -> float:
        return LEFT + np.log10(n) / 4.0 * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return TOP + (high - np.log10(value)) / (high - low) * (HEIGHT - TOP - BELOW)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
           'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
           "<title>True calls per second against the number of workers</title>",
           f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
           text(16, 28, "True calls per second", size=17, bold=True),
           text(16, 48, "solid: the network on 64 cores; dashed: on 2; rings: measured", size=13)]
    for exponent in range(low, high + 1):
        y = up(10.0**exponent)
        out += [f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{FAINT}"/>',
                text(LEFT - 8, y + 4, f"{10.0**exponent:,g}", size=13, anchor="end")]
    for exponent in range(5):
        out.append(text(across(10.0**exponent), HEIGHT - BELOW + 20, f"{10**exponent:,}", size=13, anchor="middle"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "workers", size=13, anchor="middle"))
    numbers = np.unique(np.geomspace(1, WORKERS[-1], 120).astype(int))
    for truth in TRUTHS:
        for cores, dash in zip(CORES, (' stroke-dasharray="5 4"', "")):
            rates = [min(limits(truth, int(n), costs, cores).values()) for n in numbers]
            points = " ".join(f"{across(n):.1f},{up(r):.1f}" for n, r in zip(numbers, rates))
            out.append(f'<polyline points="{points}" fill="none" stroke="{truth.colour}" stroke-width="2"{dash}/>')
        out.append(text(WIDTH - RIGHT + 6, up(rates[-1]) + 4, truth.name, size=13, colour=truth.colour))
    out += [f'<circle cx="{across(check["workers"]):.1f}" cy="{up(check["calls_per_s"]):.1f}" r="5" fill="none" '
            f'stroke="{INK}" stroke-width="2"/>' for check in record["checks"]]
    return "\n".join([*out, "</svg>"]) + "\n"


def where_it_stops(costs: Costs) -> str:
    """The table of how many workers are of use, and what they ask for."""
    head = ["true call", "network's steps", *(f"network on {cores} cores" for cores in CORES),
            *(f"{what}, {n:,} workers" for n in FEW_AND_MANY for what in ("calls per task", "replicas"))]
    lines = []
    for truth in TRUTHS:
        stops = [f"{n:,}: the {part}" if n else f"not up to {WORKERS[-1]:,}"
                 for n, part in (stops_at(truth, costs, cores) for cores in CORES)]
        chunks = {n: calls_per_task(truth.call_s, n) for n in FEW_AND_MANY}
        lines.append([truth.name, truth.network_steps, *stops,
                      *(f"{each:,}" for n, chunk in chunks.items() for each in (chunk, HALVES * chunk * n))])
    return table(head, lines)


BUSY = ("More processes than cores wanted to run while this was measured ({load:.0f} for {cores}), and what Dask does "
        "between two calls took as many times longer than its CPU seconds say: these runs are below what an idle "
        "machine shows, and hold the limits to their order of magnitude alone.")


def is_busy(record: dict) -> bool:
    """Whether others had most of the machine while it was measured."""
    return record["load"] > 2 * record["machine"]["cores"]


def page(record: dict) -> str:
    """docs/growth.md."""
    costs = Costs(**record["costs"])
    milli = {name: f"{float(f'{1e3 * value:.2g}'):g} ms"
             for name, value in record["costs"].items() if name.endswith("_s")}
    held = table(["true calls", "workers", "a call", "calls per task", "calls/s expected", "calls/s measured"], [
        [check["truth"], check["workers"], f"{check['call_s']:.3g} s", check["calls_per_task"],
         f"{check['expected']:.3g}", f"{check['calls_per_s']:.3g}"] for check in record["checks"]])
    reached = table(["true call", *(f"{n:,} workers" for n in WORKERS)], [
        [truth.name, *(f"{float(f'{min(limits(truth, n, costs, CORES[-1]).values()):.2g}'):,g}" for n in WORKERS)]
        for truth in TRUTHS])
    return "\n\n".join(part if part.startswith(("|", "#", "!", "- ")) else fill(part) for part in (
        "# How a run grows",
        "With [`--scheduler`](../QM_WORKFLOW.md#on-many-machines) the true calls of one molecule are made by any "
        "number of workers. This page says how many are of use. It is written by `benchmarks/growth.py`, from what is "
        "measured there.",
        "![True calls per second against workers](growth.svg)",
        "A run makes as many true calls per second as its slowest part: its **workers**, Dask's **scheduler**, which "
        "handles so many tasks a second, the **client**, which asks and takes answers, the **network**, which makes "
        "the timesteps between two true calls, and the **file system**.",
        "## Where it stops",
        f"Workers beyond which more of them add nothing, for a molecule of {ATOMS} atoms, by the cores that carry the "
        "network; then what a hundred and ten thousand workers ask for. The steps are what the network makes per true "
        "call, a choice: where the network holds a run up, more cores or a GPU (`--device cuda`) carry further, or "
        "fewer steps do.",
        where_it_stops(costs),
        fill("- **Chunks** make themselves: a task holds calls for 0.1 s of work, or for as long as the scheduler "
             "needs to serve all workers twice, whichever is longer (`calls_per_task` of `kstep.forces.dask_pool`).",
             "  ")
        + "\n" + fill("- **Replicas** are yours: `--replicas` of at least twice the workers times the calls of a task, "
                      "since the network carries one half while the other is asked. With fewer, workers wait.", "  "),
        f"True calls per second, the network on {CORES[-1]} cores:", reached,
        "## What was measured",
        f"A task costs the scheduler {milli['scheduler_task_s']}, the client {milli['client_task_s']} and its worker "
        f"{milli['worker_task_s']} of CPU, and each geometry in it the client {1e6 * costs.client_call_s:.2g} us. The "
        f"network makes a timestep of a replica in {1e6 * costs.step_s:.2g} us on one core, answers are written at "
        f"{costs.file_bytes_per_s / 1e6:.0f} MB/s, and a call of GFN2-xTB of ethanol takes {milli['xtb_call_s']} of "
        f"CPU. One question by itself came back after {milli['latency_s']}, while {record['load']:.0f} processes "
        f"wanted the {record['machine']['cores']} cores of the machine: a time of the clock, unlike the others.",
        "Held against runs, with what a call took at the workers of that run:", held,
        *([BUSY.format(load=record["load"], cores=record["machine"]["cores"])] if is_busy(record) else []),
        "The workers whose calls sleep are threads of one process, which they share with scheduler and client: that is "
        "harder on Dask than processes of their own.")) + "\n"


def fill(paragraph: str, indent: str = "") -> str:
    """In lines of 120 characters."""
    return textwrap.fill(paragraph, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
