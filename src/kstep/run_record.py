"""What a trajectory file says of the run that made it: its `metadata`, key by key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kstep.errors import UserError, did_you_mean


class Segment(BaseModel):
    """A stretch of one replica whose frames are connected by the dynamics and by nothing else (kstep.schemas)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    replica: int
    role: str  # equil | hot | train | reference | drift
    ensemble: str  # NVE | NVT
    temperature_K: float
    n_dof: int  # degrees of freedom behind its temperature


class RunRecord(BaseModel):
    """The metadata of a trajectory; a key that a run has nothing to say to is left out.

    Times are seconds of the whole run, all parts of a resumed one; true calls count every replica, failures too.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    segments: list[Segment]

    # what was run
    molecule: str
    smiles: str | None = None
    method: str | None = None  # names the true energy surface; files of two of them never mix
    backend: str | None = None
    platform: str | None = None  # of OpenMM
    charge: int | None = None
    multiplicity: int | None = None
    units: str | None = None  # nm ps Da kJ/mol K
    qm_atoms: list[int] | None = None  # of a QM/MM system: the region
    link_hosts: list[int] | None = None  # its atoms that a link atom hangs on
    embedding: str | None = None
    waters: int | None = None  # of the droplet around it
    coupling: dict[str, Any] | None = None  # the point charges its network has learned

    # how
    scheme: str | None = None
    scheme_traits: dict[str, Any] | None = None  # kstep.scheme_traits.SchemeTraits
    caveats: list[str] | None = None  # what the scheme does not promise of this run, in sentences
    k_steps: int | None = None
    dt_fs: float | None = None
    jump_fs: float | None = None  # k_steps dt_fs
    temperature_K: float | None = None  # of a ladder: the target
    delta_scale: float | None = None
    energy_rescale: bool | None = None
    config: dict[str, Any] | None = None  # as settled
    restraints: list[dict[str, Any]] | None = None  # kstep.restraints.Restraint, of which `bias` is the energy
    seed: int | None = None
    replicas: int | None = None
    first_replica: int | None = None
    num_workers: int | None = None
    device: str | None = None  # of the network
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    delayed_with: str | None = None  # the cheaper method that judges proposals before the true one (schemes.delayed)
    proposed_with: str | None = None  # the cheap method in the place of a network (runs.proposal_potential)
    tuning: dict[str, Any] | None = None  # what tuning measured and chose
    inner: dict[str, Any] | None = None  # how the network's force is computed, and what was timed

    starts: dict[str, Any] | None = None  # how many, relaxed on what in how many true calls, dropped with the cause

    # what happened
    status: str | None = None  # finished | stopped at ... | broke at ...
    tally: dict[str, Any] | None = None  # sums over production, see kstep.runs.counters
    acceptance: float | None = None
    mean_exp_minus_beta_dH: float | None = None  # 1 for a right sampler
    mean_exp_minus_beta_dH_error: float | None = None
    swap_acceptance: list[float | None] | None = None  # of each rung with the next
    judge: dict[str, Any] | None = None  # chain or weights, by the spread and the memory of U_true - U_net in burn-in
    figures: dict[str, Any] | None = None  # whatever else a scheme sums up
    certificate: dict[str, Any] | None = None  # kstep.runs.certificate
    aim: dict[str, Any] | None = None  # of a run without fixed length, and what it knows: kstep.runs.aim
    rotamers_never_visited: list[dict[str, Any]] | None = None
    populations: dict[str, Any] | None = None  # of the conformers: kstep.analysis.measure.populations.Populations
    species_changes: list[dict[str, Any]] | None = None  # replica, time_ps, what; of dynamics without walls
    failed_true_calls: list[str] | None = None  # the first of them, in sentences

    # what it cost
    true_calls: int | None = None
    true_calls_burn_in: int | None = None
    true_calls_by_method: dict[str, int] | None = None  # of a run that asks several: true_calls is the dear one's
    true_calls_training: int | None = None  # of the network
    true_calls_training_by_method: dict[str, int] | None = None  # of one learned --via others, theirs beside its own
    rungs: list[dict[str, Any]] | None = None  # of that ladder, the cheapest first: kstep.learning.truth_ladder
    wall_s: float | None = None
    wall_burn_in_s: float | None = None
    wall_production_s: float | None = None
    wall_network_s: float | None = None  # of the time loop: in the network
    wall_waiting_s: float | None = None  # waiting for the truth
    cpu_s: float | None = None
    cpu_burn_in_s: float | None = None
    cpu_production_s: float | None = None
    cpu_s_training: float | None = None
    busy_share: float | None = None  # 1: every core given to production worked all the time

    # where from
    machine: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    git_commit: str | None = None
    fingerprint: dict[str, Any] | None = None  # what a resumed run must share


def check_record(metadata: dict[str, Any], where: str) -> None:
    """UserError for a key that no RunRecord has, one of another type, and a molecule or segments left out."""
    try:
        RunRecord.model_validate({key: value for key, value in metadata.items() if not key.startswith("schema")})
    except ValidationError as failure:
        problem = failure.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{where}: no run records '{key}'{did_you_mean(key, RunRecord.model_fields)}; "
                            "kstep.run_record lists what it may") from None
        raise UserError(f"{where}: its record holds {key} = {problem.get('input')!r}, but "
                        f"{problem['msg'].lower()}") from None
