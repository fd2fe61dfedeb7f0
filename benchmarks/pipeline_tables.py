"""The tables of benchmarks/pipeline.py in docs/RESULTS.md: `metropolis` and `jump`, beside their controls."""

from __future__ import annotations

from guides import table

HELD_TO = {"mm": {4: ("3-4x", 0.03, 3, 0.01), 8: ("6-8x", 0.04, 4, 0.02), 12: ("10-12x", 0.05, 5, 0.03)},
           "qm": {4: ("3-4x", 0.015, 2, 0.03), 8: ("6-8x", 0.020, 3, 0.05)}}


def beside_floor(entry: dict | None, digits: int) -> str:
    """'0.0012 (floor 0.0010)'."""
    if not entry:
        return "n/a"
    floor = f"{entry['floor']:.{digits}f}" if entry["floor"] is not None else "none"
    return f"{entry['value']:.{digits}f} (floor {floor})"


def drift(entry: dict | None) -> str:
    """Slope with its 95 % interval, or when it blew up."""
    if not entry:
        return "n/a"
    text = f"{entry['drift_kJ_per_mol_ps']:+.3g} +- {entry['half_width_95']:.2g}"
    if entry["blown_up_segments"]:
        text += (f"; {entry['blown_up_segments']} of {entry['segments']} blew up, "
                 f"first at {entry['first_blow_up_ps']:.2g} ps")
    return text


def by_k(section: dict) -> list[tuple[str, dict]]:
    """Rows 'molecule k=4' by molecule, then k."""
    def order(item):
        name, k = item[0].split(" k=")
        return name != "ethanol", int(k)

    return sorted(section.items(), key=order)


def qm_metropolis(section: dict) -> str:
    rows = []
    names = sorted(section, reverse=True)  # ethanol first, as the bars are given

    def row(label, bar, value):
        rows.append([label, bar, *[value(section[name]) for name in names]])

    def middle(seeds, key, inner="value"):
        values = sorted(s[key][inner] for s in seeds)
        return values[len(values) // 2]

    row("acceptance, median of 3 seeds", ">= 0.85 ethanol, >= 0.75 aspirin", lambda s: f"{s['acceptance_median']:.3f}")
    row("bond error, A (times the floor)", "<= 0.002, <= 1.5 floors",
        lambda s: f"{s['bond_rmse_A_median']:.5f} ({s['bond_ratio_to_floor_median']:.2f})")
    row("- plain at 0.5 fs, same calls", "",
        lambda s: f"{middle(s['plain_same_calls'], 'bond_rmse_A'):.5f} "
                  f"({middle(s['plain_same_calls'], 'bond_rmse_A', 'ratio'):.2f})")
    row("angle error, deg (times the floor)", "<= 0.6, <= 1.5 floors",
        lambda s: f"{s['angle_rmse_deg_median']:.3f} ({s['angle_ratio_to_floor_median']:.2f})")
    row("- plain at 0.5 fs, same calls", "",
        lambda s: f"{middle(s['plain_same_calls'], 'angle_rmse_deg'):.3f} "
                  f"({middle(s['plain_same_calls'], 'angle_rmse_deg', 'ratio'):.2f})")
    row("<exp(-beta dH)>, each seed", "1 within 3 errors, error <= 0.03",
        lambda s: ", ".join(f"{r['exp_minus_beta_dH']['mean']:.3f} +- {r['exp_minus_beta_dH']['standard_error']:.3f}"
                            for r in s["seeds"]))
    row("proposals per seed", ">= 2000", lambda s: s["seeds"][0]["proposals"])
    row("wall seconds per ps of accepted trajectory", "",
        lambda s: f"{sorted(r['wall_s_per_ps'] for r in s['seeds'])[1]:.4f}")
    row("- plain at 1 fs, same cores and replicas", "",
        lambda s: f"{sorted(r['wall_s_per_ps'] for r in s['plain_1fs'])[1]:.3f}")
    row("ratio of the two, network trained", ">= 30 ethanol, >= 100 aspirin", lambda s: f"{s['wall_ratio_median']:.0f}")
    row("effective energy samples per 1000 true calls", "",
        lambda s: f"{sorted(r['sampling']['energy_per_1000_calls'] for r in s['seeds'])[1]:.0f}")
    row("- the long plain reference at 0.5 fs", "", lambda s: f"{s['plain_reference_energy_per_1000_calls']:.1f}")
    row("true calls: run / training data", "",
        lambda s: f"{s['seeds'][0]['true_calls']} / {s['seeds'][0]['true_calls_training']}")
    return "### GFN2-xTB, `metropolis`: k = 1000 at 0.5 fs, 300 K, real masses, frozen network\n\n" + table(
        ["", "bar", *names], rows)


def qm_jump(section: dict) -> str:
    rows = []
    for key, row in by_k(section):
        one, k = row["one_step"], row["nve"]["k_steps"]
        held = HELD_TO["qm"][k]
        rows.append([key, f"{one['jump_rms_A']:.2e} / {one['verlet_rms_A']:.2e}", f"1/{one['verlet_over_jump']:.1f}",
                     drift(row["nve"]["drift"]), f"{row['nve']['calls_saved']:.2f}x", drift(row["no_network"]["drift"]),
                     drift(row["plain_same_calls"]["drift"]), drift(row["plain_same_calls_and_time"]["drift"]),
                     f"{held[0]}, {held[3]}"])
    return ("### GFN2-xTB, `jump`: k = 4 and 8 at 0.25 fs\n\nOne-step position error on held-out windows (RMS over "
            "atoms), bar: at most 1/10 of one velocity-Verlet step of the same length. Then NVE without thermostat or "
            "rescale; drift of the true total energy in kJ/mol/ps with its 95 % interval. k = 4 and 8 at 0.25 fs are "
            "1 and 2 fs, where plain Verlet itself is stable: its column at dt = k x 0.25 fs makes the same calls "
            "over the same time.\n\n"
            + table(["", "jump / Verlet, A", "ratio", "jump, NVE drift", "calls saved", "no network",
                     "plain 0.25 fs, same calls",
                     "plain at k dt, same calls and time", "tools of this kind: calls saved, drift"], rows))


def mm(section: dict) -> str:
    exact, fast = [], []
    for key, row in by_k(section):
        k = row["jump"]["k_steps"]
        m, p = row["metropolis"], row["metropolis_plain_same_calls"]
        exact.append([key, f"{m['acceptance']:.3f}", beside_floor(m["bond_rmse_A"], 5),
                      beside_floor(p["bond_rmse_A"], 5),
                      beside_floor(m["angle_rmse_deg"], 3), beside_floor(p["angle_rmse_deg"], 3),
                      f"{m['wall_s_per_ps']:.3f} / {p['wall_s_per_ps']:.3f}"])
        j, n, p = row["jump"], row["jump_no_network"], row["jump_plain_same_calls"]
        held = HELD_TO["mm"][k]
        fast.append([key, beside_floor(j["bond_rmse_A"], 4), held[1], beside_floor(j["angle_rmse_deg"], 2), held[2],
                     f"{j['calls_saved']:.2f}x", f">= {0.8 * k:.1f}x, {held[0]}",
                     f"{j['refused_jumps']} of {j['proposals']}",
                     f"{n['calls_saved']:.2f}x", f"{beside_floor(p['bond_rmse_A'], 4)}, "
                                                 f"{beside_floor(p['angle_rmse_deg'], 2)}",
                     f"{j['wall_s_per_ps']:.2f} / {p['wall_s_per_ps']:.2f}"])
    return ("### MMFF94 (OpenMM), aspirin, 1 fs, 300 K\n\n`metropolis` (bars: within 1.5 floors, at most 0.003 A and "
            "0.6 deg):\n\n"
            + table(["", "acceptance", "bond error, A", "plain, same calls", "angle error, deg", "plain, same calls",
                     "wall s per ps: metropolis / plain"], exact)
            + "\n\n`jump` inside a Langevin thermostat, bars in the columns beside (bond and angle: the figures tools "
              "of this kind are held to):\n\n"
            + table(["", "bond error, A", "bar", "angle error, deg", "bar", "calls saved", "bar; tools of this kind",
                     "macro-steps with a refused jump", "calls saved without network", "plain, same calls",
                     "wall s per ps: jump / plain"], fast))


def mm_native(section: dict) -> str:
    text = []
    for name, row in section.items():
        us = row["us_per_step"]
        fastest = min(us, key=us.get)
        text.append(f"OpenMM's own loop takes {us[fastest]:.0f} us per step of {name} on one core ({fastest}): "
                    f"{us[fastest] * 1e-3:.3f} s per ps, half of that per ps of two replicas on two cores. Compare "
                    "the last columns: MM is where methods are proved, not where they pay.")
    return "\n\n".join(text)


def tables(data: dict) -> list[str]:
    """Of the sections that pipeline.json holds."""
    shown = {"qm_metropolis": qm_metropolis, "qm_jump": qm_jump, "mm": mm, "mm_native": mm_native}
    return [show(data[name]) for name, show in shown.items() if name in data]
