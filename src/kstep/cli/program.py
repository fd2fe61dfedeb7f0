"""What surrounds a command: logging, exit codes, and the parser of its flags."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kstep.errors import PhysicsError, UserError, sentence_of
from kstep.files import check_names_a_file
from kstep.interruption import Stopped, signals_heeded
from kstep.processes import end_quickly, one_thread

one_thread(whatever_was_set=True)  # before anything that reads it is imported
end_quickly()

SHORT_OF_AIM = 4
ENDS = (PhysicsError, UserError, OSError, MemoryError)  # with a sentence

log = logging.getLogger("kstep")


def setup_logging(level: str = "info") -> None:
    """Log to stderr, one line each."""
    logging.basicConfig(level=level.upper(), format="%(levelname).1s %(message)s", stream=sys.stderr, force=True)
    for noisy in ("matplotlib", "pymbar", "jax", "absl", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


class _LogFile(logging.FileHandler):
    """A log that a full disk does not stop: all of it is on stderr too, and the run says itself what it cannot write.
    """

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self):
        with suppress(OSError):
            super().close()


@contextmanager
def log_beside(out: Path) -> Iterator[Path]:
    """What is logged goes to <out>.log as well, with the time, after what is there; and how it ended, if not well."""
    path = check_names_a_file(out).with_name(f"{out.name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8", delay=True)  # what is refused at once leaves no file
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    log.addHandler(handler)
    try:
        yield path
    except BaseException as error:
        words = (getattr(error, "words", Stopped.words) if isinstance(error, KeyboardInterrupt)
                 else sentence_of(error) if isinstance(error, ENDS) else repr(error))
        if handler.stream is not None:  # something had begun
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, words, (), None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def exit_code(main: Callable[[], int | None]) -> int:
    """Run `main`: its code, or that of its failure, which becomes one sentence on stderr.

    0 done, 2 a user's mistake, 3 the physics failed, 4 a run ended short of its aim or by a file EXIT, 130 interrupted,
    143 ended by SIGTERM.
    """
    try:
        with signals_heeded():
            return main() or 0
    except PhysicsError as error:
        _say(f"error: {error}")
        return 3
    except (UserError, OSError, MemoryError) as error:  # a folder that cannot be written, a name too long, no space ...
        if not isinstance(error, UserError):
            log.debug("where it happened", exc_info=True)
        _say(f"error: {sentence_of(error)}")
        return 2
    except KeyboardInterrupt as stopped:
        words, code = (stopped.words, stopped.code) if isinstance(stopped, Stopped) else (Stopped.words, Stopped.code)
        _say(f"{words}; finished work is on disk, --resume continues where the script has it")
        return code


def _say(sentence: str) -> None:
    """On stderr; where that is a file on the disk that is full, the exit code alone says it."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # else Python tries once more when it ends, and makes the exit code 120


def code_of_run(metadata: dict) -> int:
    """The code of a run with this metadata: 4 where it knows less than it aimed at when its budget was spent."""
    return 0 if metadata.get("aim", {}).get("reached", True) else SHORT_OF_AIM


def run_command(command, description: str, *, numbered: str | None = None, prog: str | None = None,
                argv: list[str] | None = None) -> int:
    """Parse the flags of a module of kstep.cli and run it; `numbered`: with the flags of that numbered script."""
    from kstep.cli.flags import make_parser

    parser = make_parser(description, prog)
    command.add_flags(parser, numbered)
    parser.set_defaults(numbered=numbered)
    args = parser.parse_args(argv)
    setup_logging(args.log_level)
    if getattr(args, "allow_calculator", None):
        from kstep.forces.ase import allow_calculators

        allow_calculators(args.allow_calculator)
    return command.run(args) or 0
