"""Commands that are killed between any two of the things that they do to files, for tests.

A child is forked, which has all modules loaded and no thread, and runs a command until it is about to do the n-th thing
to a file below a folder: open it for writing, rename it, remove it, or make a folder.  There it is killed, or gets a
signal that ends it in order.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from kstep.cli import main

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


def _changes_something(event, arguments, folder):
    if event == "open":
        path, _, flags = arguments
        if not flags & WRITES:
            return False
    elif event in CHANGES:
        path = arguments[0]
    else:
        return False
    return isinstance(path, (str, os.PathLike)) and Path(os.path.abspath(path)).is_relative_to(folder)


LONGEST_S = 300  # of a command, many times what it takes


def ended(command, folder, at=None, number=signal.SIGKILL):
    """(exit code, or less the signal that ended it, things done to files) of `kstep <command>`, run in a folder.

    at: the place, from 1 on, where the signal comes; None: nowhere.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            count = len(pipe.read())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count
    gc.freeze()  # what other tests have left, threads of OpenMM among it, would wait for ever to be destroyed here
    signal.alarm(LONGEST_S)
    try:
        os.close(read)
        os.chdir(folder)
        said = os.open(folder.with_name(f"{folder.name}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        done = [0]

        def heed(event, arguments):
            if _changes_something(event, arguments, folder):
                done[0] += 1
                os.write(write, b".")
                if done[0] == at:
                    os.kill(os.getpid(), number)

        sys.addaudithook(heed)
        code = main([*map(str, command)])
        sys.stdout.flush()
        if at is None:
            folder.with_name(f"{folder.name}.json").write_text(json.dumps([*sys.modules]))
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        os._exit(code)


def load_what_it_loaded(folder):
    """Import, once and for all children, what a command that ran to its end in a folder has imported."""
    for name in json.loads(folder.with_name(f"{folder.name}.json").read_text()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
