"""Workers on a SLURM cluster for one kstep command, with dask-jobqueue: many molecules, or the true calls of one.

    python examples/slurm/cluster.py --workers 64 -- kstep batch populations --smiles-file mine.smi --out-dir mine
    python examples/slurm/cluster.py --workers 32 -- kstep sample mine/raw/aspirin --learn --config qm_pyscf --out a.npz

It starts a Dask scheduler here, asks SLURM for workers (a job each, of one core), runs the command with --scheduler,
and gives the workers back when that ends.  Where the site wants more of a job (modules, a constraint), give --directive
and --prologue, or ~/.config/dask/jobqueue.yaml (https://jobqueue.dask.org).  Anybody on the cluster's network who can
reach the scheduler can run programs as you; Dask's configuration has TLS against that.
"""

import argparse
import signal
import subprocess
import sys

import dask

# a worker whose time is over or whose node is lost costs the job that it was at a new start, not its result
TIMES_A_JOB_MAY_LOSE_ITS_WORKER = 100


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16, help="most workers at a time (default: %(default)s)")
    parser.add_argument("--walltime", default="24:00:00", help="of a worker; its jobs go on elsewhere (%(default)s)")
    parser.add_argument("--memory", default="4GB", help="of a worker (default: %(default)s)")
    parser.add_argument("--partition", help="SLURM partition")
    parser.add_argument("--account", help="SLURM account")
    parser.add_argument("--interface", help="network interface of the nodes, such as ib0 (default: Dask's choice)")
    parser.add_argument("--directive", action="append", default=[], help="a further #SBATCH line; may be repeated")
    parser.add_argument("--prologue", action="append", default=[], help="a shell line before a worker starts, such as "
                        "'module load cuda'; may be repeated")
    parser.add_argument("--print-job", action="store_true", help="print the job of a worker and end")
    parser.add_argument("command", nargs="*", help="kstep ..., after --; it is given --scheduler")
    return parser.parse_args()


def cluster_of(args):
    """A SLURMCluster without workers: one core, one process and one thread each, by the Python of this script."""
    from dask_jobqueue import SLURMCluster  # which takes Ctrl-C for itself

    return SLURMCluster(cores=1, processes=1, memory=args.memory, walltime=args.walltime, queue=args.partition,
                        account=args.account, interface=args.interface, python=sys.executable,
                        job_name="kstep-worker", job_extra_directives=args.directive,
                        job_script_prologue=["export OMP_NUM_THREADS=1", *args.prologue],
                        scheduler_options={"dashboard": False, "dashboard_address": ":0"})


def main():
    args = parse()
    with (dask.config.set({"distributed.scheduler.allowed-failures": TIMES_A_JOB_MAY_LOSE_ITS_WORKER,
                           "distributed.scheduler.worker-saturation": 1.0}),
          cluster_of(args) as cluster):
        if args.print_job:
            print(cluster.job_script())
            return 0
        if not args.command:
            raise SystemExit("error: say what to run, after --: kstep batch ..., kstep sample ...")
        cluster.adapt(minimum=0, maximum=args.workers)
        running = subprocess.Popen([*args.command, "--scheduler", cluster.scheduler_address])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the command's own, which ends in order
            signal.signal(number, lambda number, frame: running.send_signal(number))
        return running.wait()


if __name__ == "__main__":
    sys.exit(main())
