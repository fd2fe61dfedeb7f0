"""The tables of docs/gpu.md, of what benchmarks/gpu.py measured."""

from __future__ import annotations

import guides

MOST_NAMES = 4  # of a line


def cell(value: float | None, form: str = ",g") -> str:
    """A number of a table to three digits, or a dash where nothing was seen."""
    return "-" if value is None else format(float(f"{value:.3g}"), form)


def few(names: list[str]) -> str:
    """Names, or how many they are; the record has all of them."""
    return "; ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} of them, such as {names[0]}"


def table(record: dict) -> str:
    """What docs/gpu.md shows of a record."""
    sections, where = record["sections"], f"{record['machine']['cores']} cores of one {record['machine']['cpu']}"
    seen = (f"Measured on one {record['gpu']}, beside {where}." if record["gpu"] else
            f"Measured on {where}, without a GPU: **no figure here comes from one.**")
    parts = [seen, *(show(sections[name]) for name, (key, show) in SHOWN.items() if key in sections.get(name, {}))]
    reasons = [f"- {name}: {why}: {few(what)}" for name, section in sections.items()
               for why, what in section.get("unseen", {}).items()]
    said = [f"- {name}: {section['said']}" for name, section in sections.items() if section["said"]]
    return "\n\n".join([*parts, "**Not seen**, and why:\n\n" + "\n".join([*said, *reasons] or ["- nothing"])])


def shown_tests(section: dict) -> str:
    """The line of the CUDA tests."""
    return f"CUDA tests: {section['passed']} passed, {section['failed']} failed."


def shown_fields(section: dict) -> str:
    """The table of GPU4PySCF."""
    keys = ("gradient_Ha_per_bohr", "energy_Ha")
    rows = [[name, *(cell(field[key] if field else None, ".1e") for key in keys)]
            for name, field in section["fields"].items()]
    return guides.table(["GPU4PySCF beside PySCF", "gradient, Ha/bohr", "energy, Ha"], rows)


def shown_loop(section: dict) -> str:
    """The table of the inner loop."""
    numbers = sorted({int(n) for ways in section["step_us"].values() for us in ways.values() for n in us})
    rows = [[arch, way, *(cell(us[str(n)]) for n in numbers)]
            for arch, ways in section["step_us"].items() for way, us in ways.items()]
    what = f"us of a step of one replica, {section['n_atoms']} atoms"
    return guides.table([what, "way", *(f"{n:,} replicas" for n in numbers)], rows)


def shown_training(section: dict) -> str:
    """The table of the throughput of training."""
    rows = [[case, batch, *(cell(row[name]) for name in ("float32", "bfloat16"))]
            for case, batches in section["windows_per_s"].items()
            for batch, row in sorted(batches.items(), key=lambda item: int(item[0]))]
    return guides.table(["windows/s of training", "batch", "float32", "`amp`"], rows)


def shown_overlap(section: dict) -> str:
    """The table of the half-batches."""
    rows = [[row["parts"], *(cell(row[key]) for key in ("wall_production_s", "wall_waiting_s"))]
            for row in section["runs"]]
    return guides.table([f"parts of the batch, {section['network']}", "run, s", "waiting for the physics, s"], rows)


SHOWN = {"cuda_tests": ("passed", shown_tests), "gpu4pyscf": ("fields", shown_fields),  # by what must have been found
         "inner_loop": ("step_us", shown_loop), "training": ("windows_per_s", shown_training),
         "overlap": ("runs", shown_overlap)}
