"""An ASE calculator over PySCF that runs on the GPU where GPU4PySCF finds one; it needs nothing else of this project.

    from pyscf_gpu_calculator import PySCFCalculator
    atoms.calc = PySCFCalculator(xc="PBE", basis="def2-SVP", charge=0, multiplicity=1)
    atoms.get_potential_energy()   # eV; forces in eV/A and dipole moments in e A likewise

Or from the shell, energy, forces and dipole of a file that ASE reads:

    python src/pyscf_gpu_calculator.py molecule.xyz --xc PBE --basis def2-SVP --charge 0 --multiplicity 1
"""

import argparse
import sys

import numpy as np
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
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


class PySCFCalculator(Calculator):
    """Energy (eV), forces (eV/A) and dipole (e A) by Hartree-Fock (xc="HF") or DFT.

    charge (e) and multiplicity (2S+1) are those of the whole molecule; what the Atoms say of charges or magnetic
    moments is not looked at.  unrestricted None: where multiplicity is not 1.  Forces are the exact derivative of
    the energy (grid response included).  The dipole of an ion is about the centre of mass.  An SCF that does not
    converge in max_cycle cycles is tried once more in second order; then CalculationFailed is raised.
    device: auto, cpu or gpu; `running_on` says "GPU" or "CPU".  Each SCF begins at the last density of the same
    atoms; reset() forgets it.
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
        if p.multiplicity < 1 or electrons < 1 or (electrons + p.multiplicity) % 2 == 0:
            raise ValueError(f"{electrons} electrons (charge {p.charge:+d}) cannot have multiplicity {p.multiplicity}")
        heavy = self.atoms.numbers.max() > 36  # def2 bases have core potentials beyond Kr
        molecule = gto.M(atom=[(a.symbol, tuple(a.position / Bohr)) for a in self.atoms], unit="Bohr", basis=p.basis,
                         ecp=p.basis if heavy and p.basis.lower().startswith("def2") else {}, charge=p.charge,
                         spin=p.multiplicity - 1, verbose=0)
        unrestricted = p.multiplicity != 1 if p.unrestricted is None else p.unrestricted
        kind = "U" if unrestricted else "R" if p.multiplicity == 1 else "RO"
        if p.xc.upper() == "HF":
            field = getattr(scf, f"{kind}HF")(molecule)
        else:
            field = getattr(dft, f"{kind}KS")(molecule, xc=p.xc)
            field.grids.level = p.grid_level
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
    try:
        atoms = read(args.pop("file"))
        atoms.calc = PySCFCalculator(**args)
        print(f"{atoms.get_chemical_formula()} at {args['xc']}/{args['basis']} on the {atoms.calc.running_on}")
        forces = atoms.get_forces()
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # a wrong file, functional, basis, spin; no SCF
        sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else str(error).strip()}")
    print(f"energy  {atoms.get_potential_energy():.6f} eV")
    print(f"dipole  {np.linalg.norm(atoms.get_dipole_moment()) / Debye:.4f} D")
    print("forces, eV/A")
    for symbol, force in zip(atoms.get_chemical_symbols(), forces):
        print(f"  {symbol:2s} {force[0]:10.5f} {force[1]:10.5f} {force[2]:10.5f}")


if __name__ == "__main__":
    main()
