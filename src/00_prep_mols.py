"""SMILES -> conformers, topology and OpenMM System: what every later stage starts from.

Per molecule: ETKDGv3 conformers, minimised, duplicates dropped, best first; and the System of the
force field.  Writes <out-dir>/<name>/{molecule.npz, structure.pdb, system.xml} and
<out-dir>/metadata.json (merged with what is there).  A line that is wrong does not stop the
others; it is listed at the end, and the exit code is then 2.

    python src/00_prep_mols.py --smiles data/molecules.smi --out-dir data/raw
    python src/00_prep_mols.py --smiles "CC(=O)Oc1ccccc1C(=O)O" --name aspirin
"""

import sys
from pathlib import Path

from tqdm import tqdm

from kstep.errors import UserError
from kstep.files import check_writable
from kstep.molecules import DEFAULT, check_force_field
from kstep.molecules.prepare import (
    FORCE_FIELDS,
    NONE,
    Entry,
    check_name,
    prepare_entry,
    read_metadata,
    read_smiles_file,
    update_metadata,
    write_prepared,
)
from utils import add_common_arguments, log, make_parser, positive_int, provenance, run_script, setup_logging


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("--smiles", default="data/molecules.smi",
                        help="file of lines 'SMILES name [charge=.. multiplicity=..]', or one SMILES with --name")
    parser.add_argument("--name", help="the molecule's name; --smiles is then a SMILES, not a file")
    parser.add_argument("--multiplicity", type=positive_int,
                        help="spin multiplicity 2S+1 of a literal SMILES (a file states it per line)")
    parser.add_argument("--molecule", action="append", metavar="NAME",
                        help="prepare only this molecule of the file; may be repeated (default: all)")
    parser.add_argument("--out-dir", default="data/raw", help="folder for <name>/ and metadata.json")
    parser.add_argument("--force-field", default=DEFAULT,
                        help=f"one of {', '.join(FORCE_FIELDS)} or another *.offxml / gaff-<version>; '{NONE}' "
                             "writes no system.xml, enough for QM of molecules without parameters")
    parser.add_argument("--n-conformers", type=positive_int, default=20,
                        help="conformers embedded per molecule, before duplicates are dropped")
    parser.add_argument("--max-attempts", type=positive_int, default=100, help="embedding attempts per conformer")
    add_common_arguments(parser)
    return parser.parse_args()


def read_entries(args):
    """What to prepare, and one sentence per line of the file that cannot be."""
    if args.name is not None:
        if args.molecule:
            raise UserError("--molecule picks a line of a file; with --name, --smiles is a single SMILES")
        check_name(args.name)
        return [Entry(args.name, args.smiles, multiplicity=args.multiplicity)], []
    if args.multiplicity is not None:
        raise UserError("--multiplicity belongs to a literal SMILES with --name; a file states it per line")
    return read_smiles_file(args.smiles, args.molecule)


def main():
    args = parse()
    setup_logging(args.log_level)
    if args.force_field != NONE:
        check_force_field(args.force_field)
    entries, problems = read_entries(args)
    out = Path(args.out_dir)
    read_metadata(out)  # a broken one is found before the work, not after
    check_writable(out, folder=True)

    versions = provenance()
    n_wanted, n_done = len(entries) + len(problems), 0
    for entry in tqdm(entries, unit="molecule", desc="preparing", disable=None):
        try:
            prepared = prepare_entry(entry, n_conformers=args.n_conformers, seed=args.seed,
                                     max_attempts=args.max_attempts, force_field=args.force_field)
        except UserError as error:
            problems.append(str(error))
            continue
        record = write_prepared(prepared, out) | {"seed": args.seed, **versions}
        update_metadata(out, {entry.name: record})
        n_done += 1
        energies = prepared.molecule.conformer_energies
        log.info("%-16s %3d atoms, %2d conformers over %.1f kJ/mol -> %s", entry.name, len(prepared.molecule),
                 len(energies), energies[-1] - energies[0], out / entry.name)

    print(f"prepared {n_done} of {n_wanted} molecules ({args.force_field}) in {out}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    run_script(main)
