"""One molecule, every scheme, one table: what each costs and what comes out, beside plain MD.

Plain MD at 0.25, 0.5, 1 and 2 fs, a cold start (--learn), metropolis, impulse, checked and jump are
run as the other stages run them, each also given as a command a user could type, then judged with the
same metrics.  What is in --out-dir already is kept, so a benchmark goes on where it stopped.

    python src/07_benchmark.py --molecule data/raw/ethanol --out-dir outputs/benchmark/ethanol
"""

from kstep.cli import benchmark
from utils import run_script

if __name__ == "__main__":
    run_script(benchmark, __doc__, "07")
