"""An ASE calculator over PySCF that runs on the GPU where GPU4PySCF finds one; it needs nothing else of this project.

    from pyscf_gpu_calculator import PySCFCalculator
    atoms.calc = PySCFCalculator(xc="PBE", basis="def2-SVP", charge=0, multiplicity=1)
    atoms.get_potential_energy()   # eV; forces in eV/A and dipole moments in e A likewise

Or from the shell, energy, forces and dipole of a file that ASE reads:

    python src/pyscf_gpu_calculator.py molecule.xyz --xc PBE --basis def2-SVP --charge 0 --multiplicity 1
"""

import argparse
import sys
import warnings

import numpy as np
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.data import atomic_numbers, covalent_radii
from ase.units import Bohr, Debye, Hartree


def gpu_found():
    """Whether CuPy sees a GPU and GPU4PySCF is installed."""
    try:
        import cupy
        import gpu4pyscf  # noqa: F401

        return bool(cupy.cuda.is_available())
    except Exception:  # without a driver CuPy raises RuntimeErrors of its own, not ImportError
        return False


def to_numpy(array):
    """A numpy array of what may be CuPy's."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def check_atoms(atoms):
    """Refuse what an isolated molecule cannot be: none, not finite, on top of each other, periodic."""
    if not len(atoms) or not np.isfinite(atoms.positions).all():
        raise ValueError("there are no atoms" if not len(atoms) else "positions hold NaN or infinity")
    if atoms.pbc.any():
        raise ValueError("the atoms are periodic, and this calculator sees no images; set atoms.pbc = False")
    radii = covalent_radii[atoms.numbers]
    apart = atoms.get_all_distances() + np.diag(np.full(len(atoms), np.inf))
    near = np.argwhere(apart < np.maximum(0.5, 0.5 * (radii[:, None] + radii)))
    if len(near):
        i, j = near[0]
        raise ValueError(f"atoms {i} ({atoms[i].symbol}) and {j} ({atoms[j].symbol}) are {apart[i, j]:.3f} A apart")


def check_settings(p):
    """Refuse settings that would give a wrong number, or none."""
    from pyscf.dft import libxc
    from pyscf.scf import dispersion

    for key, least in (("charge", None), ("multiplicity", 1), ("max_cycle", 1), ("grid_level", 0)):
        if isinstance(p[key], bool) or not isinstance(p[key], (int, np.integer)):
            raise ValueError(f"{key} {p[key]!r} is not a whole number")
        if least is not None and p[key] < least:
            raise ValueError(f"{key} {p[key]} is below {least}")
    if p.unrestricted not in (None, True, False):
        raise ValueError(f"unrestricted {p.unrestricted!r} is not None, True or False")
    if p.grid_level > 9:
        raise ValueError(f"grid_level {p.grid_level} is above 9")
    if not 1e-12 <= p.conv_tol <= 1e-4:
        raise ValueError(f"conv_tol {p.conv_tol} Ha is not between 1e-12 and 1e-4")
    if not isinstance(p.xc, str) or not p.xc.strip(" ,"):
        raise ValueError(f"xc {p.xc!r} is no functional; HF and PBE are two")
    try:
        libxc.parse_xc(dispersion.parse_dft(p.xc)[0])
    except (KeyError, ValueError, IndexError):
        raise ValueError(f"PySCF knows no functional {p.xc!r}") from None


def core_potentials(symbols, basis):
    """{symbol: the name of its core potential} for the elements for which the basis has one.

    ValueError where the basis lacks functions for a core and has no potential either: it is made for one of another
    name (GTH, BFD, ccECP), and its number would be wrong.
    """
    from pyscf.gto.basis import load, load_ecp

    found = {}
    for symbol in sorted(symbols) if isinstance(basis, str) else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shells = load(basis, symbol)
            except Exception:  # BasisNotFoundError is a RuntimeError here, a KeyError there
                raise ValueError(f"basis {basis} of PySCF has no functions for {symbol}, or is not there") from None
            try:
                potential = load_ecp(basis, symbol)
            except Exception:  # an all-electron basis has none
                potential = None
        steepest = max(row[0] for shell in shells if shell[0] == 0 for row in shell[1:] if not isinstance(row, int))
        if potential:
            found[symbol] = basis
        elif steepest < 1.5 * atomic_numbers[symbol]**2:
            raise ValueError(f"basis {basis} has no functions for the core of {symbol}, and no core potential")
    return found


class PySCFCalculator(Calculator):
    """Energy (eV), forces (eV/A) and dipole (e A) by Hartree-Fock (xc="HF") or DFT.

    charge (e) and multiplicity (2S+1) are those of the whole molecule; what the Atoms say of charges or magnetic
    moments is not looked at.  unrestricted None: where multiplicity is not 1.  Forces are the exact derivative of
    the energy (grid response included).  The dipole of an ion is about the centre of mass.  An SCF that does not
    converge in max_cycle cycles is tried once more in second order; then CalculationFailed is raised.
    device: auto, cpu or gpu; `running_on` says "GPU" or "CPU".  Each SCF begins at the last density of the same
    atoms; reset() forgets it.  Wrong settings, periodic atoms and atoms on top of each other are a ValueError.
    Other processes are to be spawned: a fork after a calculation hangs in the maths libraries.
    """

    implemented_properties = ["energy", "forces", "dipole"]
    default_parameters = dict(xc="PBE", basis="def2-SVP", charge=0, multiplicity=1, unrestricted=None,
                              density_fit=False, dispersion=None, grid_level=2, conv_tol=1e-9, max_cycle=100,
                              device="auto")
    discard_results_on_any_change = True

    def __init__(self, **kwargs):
        self._density, self._density_of = None, None
        unknown = sorted(set(kwargs) - set(self.default_parameters))
        if unknown:
            raise ValueError(f"PySCFCalculator has no setting {', '.join(unknown)}; it has "
                             f"{', '.join(self.default_parameters)}")
        if kwargs.get("device", "auto") not in ("auto", "cpu", "gpu"):
            raise ValueError(f"device {kwargs['device']!r} is not auto, cpu or gpu")
        super().__init__(**kwargs)
        found = self.parameters.device != "cpu" and gpu_found()
        if self.parameters.device == "gpu" and not found:
            raise RuntimeError("device gpu: no CUDA GPU with GPU4PySCF found; use device auto or cpu")
        self.running_on = "GPU" if found else "CPU"

    def reset(self):
        super().reset()
        self._density = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        check_atoms(self.atoms)
        check_settings(self.parameters)
        field = self._converged()
        self.results["energy"] = float(field.e_tot) * Hartree
        centre = self.atoms.get_center_of_mass() / Bohr
        dipole = to_numpy(field.dip_moment(unit="AU", origin=centre, verbose=0))
        self.results["dipole"] = dipole * Bohr
        if "forces" in properties:
            gradient = field.nuc_grad_method()
            gradient.verbose = 0
            if self.parameters.xc.upper() != "HF":
                gradient.grid_response = True
            self.results["forces"] = -to_numpy(gradient.kernel()) * Hartree / Bohr

    def _field(self):
        """The unconverged mean field of self.atoms."""
        from pyscf import dft, gto, scf

        p = self.parameters
        electrons = int(self.atoms.numbers.sum()) - p.charge
        if not 1 <= p.multiplicity <= electrons + 1 or electrons < 1 or (electrons + p.multiplicity) % 2 == 0:
            raise ValueError(f"{electrons} electrons (charge {p.charge:+d}) cannot have multiplicity {p.multiplicity}")
        molecule = gto.M(atom=[(a.symbol, tuple(a.position / Bohr)) for a in self.atoms], unit="Bohr", basis=p.basis,
                         ecp=core_potentials(set(self.atoms.symbols), p.basis), charge=p.charge,
                         spin=p.multiplicity - 1, verbose=0)
        unrestricted = p.multiplicity != 1 if p.unrestricted is None else p.unrestricted
        kind = "U" if unrestricted else "R" if p.multiplicity == 1 else "RO"
        if p.xc.upper() == "HF":
            field = getattr(scf, f"{kind}HF")(molecule)
        else:
            field = getattr(dft, f"{kind}KS")(molecule, xc=p.xc)
            field.grids.level = field.nlcgrids.level = p.grid_level  # the second: of VV10, as in wB97X-V
        if p.density_fit:
            field = field.density_fit()
        if p.dispersion is not None:
            field.disp = p.dispersion
        field.conv_tol, field.max_cycle = p.conv_tol, p.max_cycle
        return field.to_gpu() if self.running_on == "GPU" else field

    def _converged(self):
        """The converged mean field of self.atoms, in first or second order."""
        field = self._field()
        numbers = self.atoms.numbers.tolist()
        field.kernel(dm0=self._density if self._density_of == numbers else None)
        self._density = None
        if not field.converged:
            second = field.newton()
            second.max_cycle = field.max_cycle
            second.kernel(field.mo_coeff, field.mo_occ)
            field = second
        if not field.converged:
            raise CalculationFailed(f"the SCF did not converge in {field.max_cycle} cycles, nor in second order after "
                                    "them; check charge and multiplicity, or raise max_cycle")
        self._density, self._density_of = field.make_rdm1(), numbers
        return field


def fail(sentence, code=2):
    """Say what is wrong and end the program."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def main():
    from ase.io import read

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="structure that ASE reads, e.g. molecule.xyz (A)")
    parser.add_argument("--xc", default="PBE", help="HF, or a functional of PySCF")
    parser.add_argument("--basis", default="def2-SVP", help="a basis of PySCF")
    parser.add_argument("--charge", type=int, default=0, help="e")
    parser.add_argument("--multiplicity", type=int, default=1, help="2S+1")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto", help="where it runs")
    args = vars(parser.parse_args())
    name = args.pop("file")
    try:
        atoms = read(name)
    except Exception as error:  # each format has its own
        fail(f"{name} cannot be read by ASE ({type(error).__name__}: {str(error).strip()})")
    try:
        atoms.calc = PySCFCalculator(**args)
        print(f"{atoms.get_chemical_formula()} at {args['xc']}/{args['basis']} on the {atoms.calc.running_on}")
        forces = atoms.get_forces()
    except (ValueError, RuntimeError, NotImplementedError) as error:  # a wrong setting; no SCF
        fail(str(error).strip(), 3 if isinstance(error, CalculationFailed) else 2)
    print(f"energy  {atoms.get_potential_energy():.6f} eV")
    print(f"dipole  {np.linalg.norm(atoms.get_dipole_moment()) / Debye:.4f} D")
    print("forces, eV/A")
    for symbol, force in zip(atoms.get_chemical_symbols(), forces):
        print(f"  {symbol:2s} {force[0]:10.5f} {force[1]:10.5f} {force[2]:10.5f}")


if __name__ == "__main__":
    main()
