"""Watch a training in the terminal: losses, learning rate, validation errors, speed, time left, checkpoints.

Reads <log-dir>/metrics.jsonl as src/04_train.py writes it and waits for it when there is none yet; it never
writes, so it may run anywhere the file can be read.  q or Ctrl-C leaves.

    python scripts/qm_train_tui.py --log-dir outputs/checkpoints
    python scripts/qm_train_tui.py --log-dir outputs/checkpoints --metric force_rmse_kJ_per_mol_nm --once
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from kstep.cli.monitor.frame import compose, duration, figure, state, whole
from kstep.cli.monitor.log import Follower
from kstep.errors import UserError, did_you_mean

LOOK_S = 0.2  # how soon a key or another window size is seen, however slow --refresh


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-dir", type=Path, default=Path("outputs/checkpoints"),
                        help="--out-dir of the training (default: %(default)s)")
    parser.add_argument("--metric", nargs="+", default=["val_loss", "train_loss"], metavar="NAME",
                        help="what to draw over steps: any number in the log (default: val_loss train_loss)")
    parser.add_argument("--refresh", type=float, default=1.0, metavar="S", help="seconds between looks (default: 1)")
    parser.add_argument("--max-points", type=int, default=2000, metavar="N",
                        help="points kept of a curve; lows and highs stay (default: 2000)")
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    args = parser.parse_args()
    if not (math.isfinite(args.refresh) and 0.1 <= args.refresh <= 3600):
        parser.error("--refresh must lie between 0.1 and 3600 seconds")
    if not 10 <= args.max_points <= 100_000:
        parser.error("--max-points must lie between 10 and 100000")
    if args.log_dir.exists() and not args.log_dir.is_dir():
        parser.error(f"--log-dir {args.log_dir} is a file; give the folder that holds metrics.jsonl")
    return args


def look(follower: Follower, metrics: list[str]) -> bool:
    try:
        changed = follower.poll()
    except OSError as error:
        raise UserError(f"cannot read {follower.path}: {error.strerror}") from error
    known = sorted(follower.summary.latest)
    for name in follower.summary.unknown(metrics):
        hint = did_you_mean(name, known)
        listed = f" (there are: {', '.join(known)})" if "did you mean" in hint else ""
        raise UserError(f"--metric '{name}' is not in {follower.path}{hint}{listed}")
    return changed


@contextmanager
def keys():
    """A function wait(seconds) -> the key pressed meanwhile, or ''; the terminal is put back at the end."""
    if not sys.stdin.isatty():
        yield lambda seconds: time.sleep(seconds) or ""
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def wait(seconds):
        ready = select.select([descriptor], [], [], seconds)[0]
        return os.read(descriptor, 64).decode(errors="replace") or "q" if ready else ""  # '': the terminal is gone

    try:
        tty.setcbreak(descriptor)
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def screen(console, follower, args, frame):
    with keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        drawn_at, size = -math.inf, None
        while True:
            if time.monotonic() - drawn_at >= args.refresh or console.size != size:
                look(follower, args.metric)
                size, drawn_at = console.size, time.monotonic()
                live.update(frame(*size), refresh=True)
            if "q" in wait(min(LOOK_S, args.refresh)).lower():
                return


def lines(follower, args):
    """For a terminal that cannot move its cursor, or a file: one line whenever the log has grown."""
    print(f"watching {follower.path}", flush=True)
    with keys() as wait:
        while True:
            if look(follower, args.metric):
                summary = follower.summary
                values = "  ".join(f"{m} {figure(summary.latest.get(m))}" for m in args.metric)
                print(f"{state(follower, time.time())[0]}  step {whole(summary.progress.get('step'))}  {values}  "
                      f"left {duration(summary.left_s())}", flush=True)
            if "q" in wait(args.refresh).lower():
                return


def main():
    args = parse()
    sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    unicode = console.encoding.lower().replace("-", "").startswith("utf")
    follower = Follower(args.log_dir / "metrics.jsonl", args.max_points)

    def frame(width, height):
        return Group(*compose(follower, args.metric, width, height, unicode=unicode,
                              colour=console.color_system is not None and not console.no_color))

    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(0))  # through the finally blocks that put the terminal back
    try:
        if args.once:
            look(follower, args.metric)
            console.print(frame(*console.size))
        elif console.is_terminal and not console.is_dumb_terminal:
            screen(console, follower, args, frame)
        else:
            lines(follower, args)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
