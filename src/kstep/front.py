"""Sampling a molecule from Python: what `import kstep` offers.

    molecule   a SMILES, the path of a prepared folder or of a structure file (xyz, extxyz, sdf, mol, pdb), ase.Atoms or
               a list of them (each a start), or a Molecule; charge and multiplicity where it does not say them itself
    physics    a YAML of configs/ or its name ("qm", "md"), a backend ("tblite", "xtb", "openmm", "pyscf"), a method of
               xTB ("GFN2-xTB"), a mapping of config keys, a config object, or any ASE calculator or factory of one
    settings   keywords that are the keys of the config, checked with "did you mean"

A run that starts worker processes must stand below `if __name__ == "__main__":` in a script, since they import it
again. The functions are those of the command line.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from kstep.analysis.measure.observables import Function, Observed, average as measure_average
from kstep.analysis.measure.populations import SMALLEST, Populations, populations as measure_populations
from kstep.config import BaselineConfig, load_config, validate
from kstep.errors import UserError
from kstep.files import check_names_a_file
from kstep.learning.learn_config import LearnConfig
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import check_not_another, write_prepared
from kstep.outputs import check_no_input
from kstep.processes import one_thread
from kstep.result import Result
from kstep.schemas import Trajectory, load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.shipped import find_config
from kstep.stages.physics import (
    Subject,
    TruePhysics,
    check_lengths,
    load_physics,
    open_physics,
    prepare_subject,
    solvated,
)
from kstep.stages.plain_md import PlainMDSettings, run_one
from kstep.stages.relaxation import physics_of_run, relax_conformers
from kstep.stages.sampling import SamplingSettings, learn_alone, sample as run_sampling

HYBRID, LEARN = "configs/hybrid.yaml", "configs/learn.yaml"

Runs = Result | str | Path | Sequence[Result | str | Path]
Settings = bool | str | Path | Mapping[str, Any]


def prepare(smiles: Subject, name: str | None = None, *, out: str | Path | None = None, force_field: str | None = None,
            charge: int | None = None, multiplicity: int | None = None, n_conformers: int = 20,
            seed: int = 0) -> Molecule:
    """Conformers and topology of a SMILES (named by its formula without `name`), or of one's own structures.

    out: folder in which <name>/{molecule.npz, structure.pdb, system.xml} are written (None: nothing is).  force_field:
    see 00 (None: MMFF94 where it has parameters).  n_conformers, seed: of a SMILES; a structure file and ase.Atoms have
    their own.  Raises UserError for what is no molecule, and where another preparation lies in that folder.
    """
    _check_counts(seed)
    prepared = prepare_subject(smiles, name=name, force_field=force_field, charge=charge, multiplicity=multiplicity,
                               n_conformers=n_conformers, seed=seed)
    if out is not None:
        check_not_another(prepared, out, "choose another folder")
        write_prepared(prepared, out)
    return prepared.molecule


def sample(molecule: Subject, physics: Any = "configs/qm.yaml", *, learn: Settings = False,
           via: Any = (), teacher: Any = None, network: str | Path | None = None, labels: str | Path | None = None,
           out: str | Path | None = None, name: str | None = None,
           charge: int | None = None, multiplicity: int | None = None, solvent: str | None = None,
           start: Result | str | Path | None = None, frame: int | None = None, seed: int = 0,
           workers: int | None = None, scheduler: str | Path | None = None, device: str = "auto",
           delay_with: Any = None, propose_with: Any = None, resume: bool = False, overwrite: bool = False,
           **settings: Any) -> Result:
    """A hybrid run, exact where its scheme is: k network steps, one true call.

    learn: first learn a network from true calls alone (True, or the keys of configs/learn.yaml, or such a file);
    via: a cheaper physics, or several, the cheapest first: its network is learned, and then only the difference to the
    next one; teacher: instead of via, one cheaper physics whose network stands for that of the truth as it is, which is
    asked nothing before it samples; network: instead, a checkpoint, with via or teacher that of the cheapest, and the
    `labels` that it was fitted to; start: trajectory to start from (one `frame` of it) instead of conformers; out: file
    to write (None: <name>.npz in the current folder, or the next free name); solvent: an implicit one, such as
    "water", in the place of that of `physics`; scheduler: of the Dask cluster that makes the true calls, its address or
    its file (None: this machine); delay_with: a cheaper physics that judges each proposal before the dear one is asked;
    propose_with: a cheap one that makes them, in the place of a network, for a dear one of a minute or more a call;
    settings: keys of configs/hybrid.yaml, such as scheme, steps, replicas,
    temperature_K; resume: go on with what is there; overwrite: begin anew, and keep what is there under another name.
    Raises UserError for a mistake, PhysicsError where the physics broke.
    """
    subject = dict(name=name, charge=charge, multiplicity=multiplicity, seed=seed)
    run = _sampling(molecule, physics, learn, settings, subject, via=via, teacher=teacher, network=network,
                    labels=labels, out=out, start=start, frame=frame, solvent=solvent, workers=workers,
                    scheduler=scheduler, device=device, resume=resume, overwrite=overwrite)
    beside: dict[str, Any] = {"delay_with": delay_with, "propose_with": propose_with}
    for key in [key for key, each in beside.items() if each is not None]:
        config, calculator = _config(beside[key], {})
        beside[key] = run.physics.on(solvated(config, solvent), calculator)
    run_sampling(replace(run, **beside))
    return Result(run.out)


def learn(molecule: Subject, physics: Any = "configs/qm.yaml", *, via: Any = (), teacher: Any = None,
          out: str | Path | None = None, name: str | None = None, charge: int | None = None,
          multiplicity: int | None = None, temperature_K: float | None = None, solvent: str | None = None,
          seed: int = 0, workers: int | None = None, scheduler: str | Path | None = None, device: str = "auto",
          resume: bool = False, overwrite: bool = False, **settings: Any) -> Path:
    """Learn a network for sampling from true calls alone; the checkpoint <out>.learn/network.pt.

    via, teacher: as of `sample`, where it is <out>.via<n>/network.pt; settings: keys of configs/learn.yaml.
    """
    subject = dict(name=name, charge=charge, multiplicity=multiplicity, seed=seed)
    return learn_alone(_sampling(molecule, physics, settings or True, {"temperature_K": temperature_K}, subject,
                                 via=via, teacher=teacher, out=out, solvent=solvent, workers=workers,
                                 scheduler=scheduler, device=device, resume=resume, overwrite=overwrite))


def simulate(molecule: Subject, physics: Any = "configs/qm.yaml", *, out: str | Path | None = None,
             name: str | None = None, charge: int | None = None, multiplicity: int | None = None, seed: int = 0,
             workers: int | None = None, resume: bool = False, overwrite: bool = False, **settings: Any) -> Result:
    """Plain MD, every replica an independent seed from its own conformer.

    out: file to write (None: <name>_plain.npz in the current folder, or the next free name); settings: keys of the
    config of the physics, such as length_ps, dt_fs, replicas, scheduler.
    """
    _check_counts(seed, workers)
    true = _physics(molecule, physics, settings, name=name, charge=charge, multiplicity=multiplicity, seed=seed)
    check_lengths(true.config, "settings")
    if not true.is_mm:
        _check_guard()  # its replicas run in processes of their own
    one_thread()
    true.check()
    path = _file(out, f"{true.molecule.name}_plain")
    run_one(PlainMDSettings(((true, path),), seed, n_workers=workers, resume=resume, overwrite=overwrite))
    return Result(path)


@dataclass(frozen=True)
class Report:
    """metrics: what metrics.json holds; problems: a sentence for each file that could not be judged.

    Printing it gives its table.
    """

    folder: Path
    metrics: dict[str, Any]
    problems: list[str]

    def __str__(self) -> str:
        from kstep.analysis.show.text import format_text

        return format_text(self.metrics)


def evaluate(runs: Result | str | Path, baseline: Result | str | Path, *, out: str | Path = "evaluation",
             seed: int = 0) -> Report:
    """Judge runs (a file, or a folder of them) against plain MD.

    Writes metrics.json, plots/ and report.html into the folder `out`.
    """
    from kstep.analysis.evaluate import evaluate as judge

    return Report(Path(out), *judge(_path(baseline), _path(runs), out, seed=seed))


def load(path: str | Path) -> Result:
    """A trajectory file of any stage."""
    result = Result(Path(path))
    len(result)  # read now: a file that is none is found here
    return result


def export(result: Result | str | Path, out: str | Path, *, format: str | None = None,
           populations: Populations | bool = False, overwrite: bool = False) -> Path:
    """Write the frames of a result for other programs, in the format of that name or of the extension of `out`.

    Formats: the keys of kstep.analysis.show.formats.FORMATS.  populations: instead of the frames one structure for each
    conformer, with its population and free energy (True: those of Result.populations()), as sdf, pdb, xyz or extxyz.
    UserError where something lies at `out`, which with overwrite is kept under another name instead.
    """
    from kstep.analysis.show import formats
    from kstep.analysis.show.formats.conformers import export_conformers

    result = result if isinstance(result, Result) else Result(Path(result))
    check_no_input([Path(out)], {"the trajectory": result.path})
    if populations is False:
        return formats.export(result.chosen, out, format, overwrite=overwrite)
    found = result.populations() if populations is True else populations
    return export_conformers(result.trajectory, found, out, format, overwrite=overwrite)


def populations(runs: Runs, *, temperature_K: float | None = None, smallest: float = SMALLEST,
                relax: Any = None) -> Populations:
    """Populations of the conformers in a run, or in several of one molecule and method; printing them gives the table.

    temperature_K: where other than the runs' own, frames are reweighted; smallest: population of a conformer that is
    listed; relax: the physics of the run (as for `sample`; True: "configs/qm.yaml"), on which each representative is
    relaxed.  Raises UserError for what cannot be joined or reweighted.
    """
    trajectories = _trajectories(runs)
    found = measure_populations(trajectories, temperature_K, smallest=smallest)
    if relax is None or relax is False:
        return found
    config, calculator = _config("configs/qm.yaml" if relax is True else relax, {})
    return relax_conformers(found, trajectories, physics_of_run(trajectories[0], config, calculator))


def average(runs: Runs, function: Function | str, *, temperature_K: float | None = None,
            one_by_one: bool = False) -> Observed:
    """Average of a function of positions (F,N,3) in nm, a value or row per frame, with error and effective samples.

    function: or "dipole" (debye) or "radius_of_gyration" (nm); one_by_one: it takes the positions (N,3) of one frame
    instead.
    """
    return measure_average(_trajectories(runs), function, temperature_K, one_by_one=one_by_one)


def _trajectories(runs: Runs) -> list[Trajectory]:
    return [run.trajectory if isinstance(run, Result) else load_trajectory(run)
            for run in ([runs] if isinstance(runs, Result | str | Path) else runs)]


def _path(run: Result | str | Path) -> Path:
    return run.path if isinstance(run, Result) else Path(run)


def _sampling(molecule: Subject, physics: Any, learn: Settings, settings: dict[str, Any], subject: dict[str, Any], *,
              out, workers: int | None, network=None, labels=None, start=None, solvent=None, scheduler=None,
              via: Any = (), teacher: Any = None, **others) -> SamplingSettings:
    """The settings of a hybrid run, checked; subject: keywords of `open_physics`; others: those that need no check."""
    _check_counts(subject["seed"], workers)
    keys = {"solvent": solvent, "scheduler": scheduler and str(scheduler)}
    changes = {key: value for key, value in keys.items() if value is not None}
    true = _physics(molecule, physics, changes, **subject)
    below = tuple(true.on(*_config(each, changes)) for each in (via if isinstance(via, list | tuple) else [via]))
    if teacher is not None:
        others["teacher"] = true.on(*_config(teacher, changes))
    if true.workers(workers) > 1:
        _check_guard()
    one_thread()
    given = {} if isinstance(learn, bool) else learn
    config = (load_config(LearnConfig, LEARN, dict(given)) if isinstance(given, Mapping) else
              load_config(LearnConfig, given))
    return SamplingSettings(
        physics=true, hybrid=load_config(HybridConfig, HYBRID, settings), out=_file(out, true.molecule.name), via=below,
        checkpoint=network and Path(network), labels=labels and Path(labels), learn=learn is not False,
        learn_config=config, initial_md=None if start is None else _path(start), seed=subject["seed"],
        n_workers=workers, **others)


def _physics(molecule: Subject, physics: Any, settings: dict[str, Any], **subject) -> TruePhysics:
    config, calculator = _config(physics, settings)
    true = open_physics(molecule, config, **subject)
    return true if calculator is None else TruePhysics(true.molecule, config, calculator=calculator)


def _config(physics: Any, settings: dict[str, Any]) -> tuple[BaselineConfig, Any]:
    """The config that `physics` means, with `settings` in it, and the calculator that it is, if it is one."""
    from kstep.forces import BACKENDS

    if isinstance(physics, BaselineConfig):
        return (validate(type(physics), physics.model_dump() | settings, "settings") if settings else physics), None
    if isinstance(physics, Mapping):
        return load_physics(None, {**physics, **settings}), None
    if isinstance(physics, str | Path):
        if find_config(physics).is_file():
            return load_physics(physics, settings), None
        if physics in BACKENDS:
            return load_physics(None, {"backend": physics, **settings}), None
        if str(physics).upper().startswith(("GFN", "IPEA")):
            return load_physics(None, {"method": physics, **settings}), None
        raise UserError(f"physics '{physics}' is no config file, and no backend of {', '.join(BACKENDS)}")
    from kstep.forces.ase import name_of

    return load_physics(None, {"backend": "ase", "calculator": name_of(physics), **settings}), physics


def _file(out: str | Path | None, name: str) -> Path:
    """`out`, or a file of that name in the current folder that is not there yet."""
    if out is not None:
        return check_names_a_file(Path(out))
    path, n = Path(f"{name}.npz"), 1
    while path.exists():
        n += 1
        path = Path(f"{name}_{n}.npz")
    return path


def _check_counts(seed: int, workers: int | None = None) -> None:
    """UserError for a seed below 0, and for workers that are none."""
    for key, value, least in (("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and not (isinstance(value, Integral) and value >= least):
            raise UserError(f"{key} = {value!r} is no whole number of {least} or more")


def _check_guard() -> None:
    """UserError where worker processes would run the caller's script again.

    Each of them imports the main program; what stands outside `if __name__ == "__main__":` would start there too.
    """
    main = sys.modules["__main__"]
    source = getattr(main, "__file__", None)
    if source is None or not os.path.isfile(source):
        return  # a console or a notebook, which workers do not import
    frame = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "<module>" and frame.f_globals is main.__dict__):
        frame = frame.f_back
    if frame is None:
        return
    try:
        body = ast.parse(Path(source).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, UnicodeDecodeError):
        return
    guarded = any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
                  and node.lineno <= frame.f_lineno <= (node.end_lineno or 0) for node in body)
    if not guarded:
        raise UserError(f"{source}, line {frame.f_lineno}: this starts worker processes, which import the script "
                        "again; put what is to be run below  if __name__ == \"__main__\":  (or give workers=1)")
