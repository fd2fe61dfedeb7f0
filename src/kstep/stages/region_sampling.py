"""A hybrid run of a QM region in an OpenMM environment: its network is the cheap potential of all atoms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kstep.config import ChargedConfig
from kstep.errors import UserError
from kstep.files import check_name, check_writable
from kstep.learning.cold_start import explored_with, learn_for, length_fs_of, temperatures_of
from kstep.learning.earlier import Earlier
from kstep.learning.region_target import RegionTarget
from kstep.molecules import DEFAULT
from kstep.molecules.droplet import read_pdb, solvate
from kstep.molecules.prepare import prepare_molecule, prepare_structure
from kstep.molecules.structure_file import read_structure
from kstep.processes import physical_cores
from kstep.provenance import machine, provenance
from kstep.runs.aim import settle_end
from kstep.runs.qmmm_network import embedded_recipe
from kstep.runs.qmmm_system import QMMMSystem, embed
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import prepare_run, restraints_of
from kstep.schemes import SCHEMES
from kstep.stages.sampling import RunSettings, device_of, relearner, yaml_of


@dataclass(frozen=True, kw_only=True)
class RegionSettings(RunSettings):
    """qm: of the capped region; smiles: the molecule in a droplet of `waters`, or `structure`: its structure file, with
    its charge and multiplicity where it does not say them; or `pdb`: all atoms of a file; qm_atoms: the region, from 0
    (None: the whole molecule of smiles or structure); embedding: electrostatic or mechanical; learn_calls: QM calls
    that learning may take, which there is without `checkpoint`.
    """

    qm: ChargedConfig
    smiles: str = "CCO"
    structure: Path | None = None
    charge: int | None = None
    multiplicity: int | None = None
    pdb: Path | None = None
    waters: int = 20
    qm_atoms: tuple[int, ...] | None = None
    embedding: str = "electrostatic"
    learn_calls: int = 800


def sample_region(settings: RegionSettings) -> dict:
    """Run, write settings.out, and return its metadata."""
    s = settings
    _check_network(s)
    check_writable(s.out)
    check_name(s.out.stem)  # of the system, too
    needs_learning = SCHEMES[s.hybrid.scheme].traits.needs_network and s.checkpoint is None
    settle_end(s.hybrid, SCHEMES[s.hybrid.scheme])  # what contradicts itself is refused before anything is learned
    s.settle_output({"--pdb": s.pdb}, learns=needs_learning)
    system = _system(s)
    device, n_workers, checkpoint = device_of(s.device), s.n_workers or physical_cores(), s.checkpoint
    target = RegionTarget(molecule=system.molecule, region=system.region, spec=system.spec, method=s.qm.method,
                          starts_K=s.qm.temperature_K, inner_dt_fs=s.hybrid.dt_fs, about=system.facts, device=device,
                          temperatures_K=temperatures_of(s.hybrid, s.qm), length_fs=length_fs_of(s.hybrid, s.qm),
                          climbs=bool(SCHEMES[s.hybrid.scheme].traits.explores and s.hybrid.tune
                                      and s.hybrid.network_ladder_K is None),
                          **explored_with(s.hybrid))
    if needs_learning:
        checkpoint = learn_for(target, s.out, s.learn_config, model_config=s.model_config, seed=s.seed,
                               n_workers=n_workers, most_true_calls=s.learn_calls, resume=s.resume,
                               earlier=Earlier(None, s.labels))
    run = prepare_run(system.molecule, lambda settled: system.spec, s.qm.method, s.hybrid, s.qm, out=s.out,
                      checkpoint=checkpoint, model_config=yaml_of(s.model_config), seed=s.seed, n_workers=n_workers,
                      device=device, resume=s.resume, recipe=embedded_recipe(system.spec, s.qm.method),
                      facts=system.facts)
    earlier = None if needs_learning else s.labels  # which learning has used
    return run_hybrid(run, provenance(), machine(), relearner(run, target, s.learn_config, earlier))


def _check_network(s: RegionSettings) -> None:
    """A checkpoint that cannot be read is found before the surroundings take their time."""
    if s.checkpoint is not None and SCHEMES[s.hybrid.scheme].traits.needs_network:
        from kstep.models import checkpoint as checkpoints

        checkpoints.load(s.checkpoint)


def _system(s: RegionSettings) -> QMMMSystem:
    """The QM region in its surroundings."""
    facts = {"waters": 0 if s.pdb else s.waters}
    how: dict[str, Any] = dict(embedding=s.embedding, n_starts=s.hybrid.replicas, seed=s.seed,
                               restraints=restraints_of(s.hybrid, s.qm))
    if s.pdb:
        return embed(s.out.stem, read_pdb(s.pdb), s.qm_atoms, s.qm, facts=facts, **how)
    own: dict[str, Any] = {"charge": s.charge, "multiplicity": s.multiplicity}
    prepared = (prepare_structure(read_structure(s.structure, **own), "solute", force_field=DEFAULT) if s.structure else
                prepare_molecule("solute", s.smiles, seed=s.seed, **own))
    molecule = prepared.molecule
    atoms = range(len(molecule)) if s.qm_atoms is None else s.qm_atoms
    if max(atoms) >= len(molecule):
        raise UserError(f"QM atom {max(atoms)} is not in the molecule, whose {len(molecule)} atoms are 0 to "
                        f"{len(molecule) - 1}")
    return embed(s.out.stem, solvate(prepared, s.waters), atoms, s.qm, smiles=molecule.smiles,
                 smiles_order=molecule.smiles_order, multiplicity=molecule.multiplicity, facts=facts, **how)
