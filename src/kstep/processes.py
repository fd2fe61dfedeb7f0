"""Worker processes that never outlive the program that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def exit_with_parent() -> None:
    """End this spawned process as soon as its parent is gone, however that died.

    A worker in the middle of a long calculation would not notice; as an orphan it would go on
    using a core, and writing into files that a new run believes to be its own.
    """
    parent = multiprocessing.parent_process()

    def watch():
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
