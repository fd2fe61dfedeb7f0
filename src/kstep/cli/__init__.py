"""The `kstep` command: one module per subcommand, each with `add_flags` and `run`; argparse lives in this folder alone.

A subcommand turns its flags into one typed settings object, calls one function of the library with it, and says where
the result went.  The numbered scripts are faces of the same modules with their own names and defaults of flags.
"""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {  # in the order of the pipeline
    "check": "what is installed, and whether it works",
    "prepare": "SMILES -> conformers, topology and force field (00)",
    "baseline": "plain MD with OpenMM, xTB, DFT or any ASE calculator (01, 01b, 01c)",
    "dataset": "trajectories -> windows of k timesteps (02)",
    "model": "size, symmetries and speed of a network (03)",
    "train": "a network from windows (04)",
    "learn": "a network for sampling, from true calls alone",
    "sample": "k network steps per true call; --learn starts from a SMILES alone (06, 06b)",
    "qmmm": "the same for a QM region in an OpenMM environment (qmmm_example)",
    "evaluate": "hybrid runs against plain MD: tables, plots, report (05, 05b)",
    "report": "one run as a page: conformers in 3D, populations, torsions, convergence, cost",
    "umbrella": "windows of restraints along a coordinate, joined into its free energy",
    "profile": "free energies along torsions and distances, of runs or of windows",
    "populations": "the conformers of a run: populations, free energies, errors",
    "average": "any observable of a run, one's own too, with its error",
    "export": "a trajectory, or its conformers, for other programs: sdf, extxyz, pdb, xtc ...",
    "spectrum": "the infrared spectrum of dynamics: peaks, curves, a picture",
    "benchmark": "every scheme on one molecule, one table (07)",
    "advise": "does it pay for this molecule? (08)",
    "batch": "a stage for every molecule of a list, or all the way to populations: one table",
}


def usage() -> str:
    """What `kstep` alone prints."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {words}" for name, words in COMMANDS.items())
    return (f"usage: kstep [--version] <command> [flags]\n\n{_what_it_is()}\n\ncommands, in the order of the "
            f"pipeline:\n{rows}\n\nkstep <command> --help explains its flags.  "
            "Try: kstep sample CCO --learn --out ethanol.npz")


def _what_it_is() -> str:
    import kstep

    return kstep.__doc__.splitlines()[0]


def main(argv: list[str] | None = None) -> int:
    """The console command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from kstep import __version__

        print(f"kstep {__version__}")
        return 0
    from kstep.errors import did_you_mean

    name, *flags = words
    if name not in COMMANDS:
        print(f"error: kstep has no command '{name}'{did_you_mean(name, COMMANDS)}; kstep --help lists them",
              file=sys.stderr)
        return 2
    from kstep.cli.program import exit_code, run_command

    command = import_module(f"kstep.cli.{name}")
    return exit_code(lambda: run_command(command, command.__doc__, prog=f"kstep {name}", argv=flags))
