"""The run process: ``python -m segdesk.training RUN_DIR``.

With ``--wait LOG`` instead of a folder it loads torch and waits: it tells what a run
would take and shows augmentation, does the one run it is given, and ends.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path

from segdesk.jobs.child import ParentLine, is_first_process, lower_priority, share_processor
from segdesk.jobs.control import RunControl
from segdesk.jobs.following import listen_to_folder
from segdesk.jobs.heap import give_back_freed_memory, keep_freed_memory
from segdesk.jobs.messages import (
    AnyOrder,
    CancelOrder,
    EstimateOrder,
    LeaveOrder,
    PauseOrder,
    RunOrder,
    VaryOrder,
)

#: After its parent died, a run has this long to write a checkpoint.
LAST_SECONDS = 10.0

Task = RunOrder | EstimateOrder | VaryOrder


class Child:
    """Takes orders on one thread and hands tasks to another.

    Parameters
    ----------
    folder
        Of the run it is started for; None when it waits for one.
    """

    def __init__(self, folder: Path | None) -> None:
        self.control = RunControl()
        self.tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        #: Whether torch is there; before, there is nothing to lose.
        self.has_loaded = False
        self._answering = RunControl()
        self._folder = folder
        self._is_alone = False

    def next_answer(self) -> RunControl:
        """Return the control of a question that is about to be answered."""
        self._answering = RunControl()
        return self._answering

    def take(self, order: AnyOrder) -> None:
        """Accept an order; returns at once."""
        if isinstance(order, RunOrder):
            self._folder = order.folder
            self._answering.cancel()  # nobody waits for the answer any more
            self.tasks.put(order)
        elif isinstance(order, EstimateOrder | VaryOrder):
            self._answering.cancel()
            self.tasks.put(order)
        elif isinstance(order, PauseOrder):
            self.control.pause(order.is_paused)
        elif isinstance(order, CancelOrder):
            self.control.cancel()
        elif isinstance(order, LeaveOrder) and self._folder is not None:
            self._is_alone = True
            listen_to_folder(self._folder, self.take)

    def parent_gone(self) -> None:
        """End soon, with a checkpoint; unless the run was told to go on alone."""
        if self._is_alone:
            return
        if not self.has_loaded:
            os._exit(0)
        self.control.cancel()
        self._answering.cancel()
        self.tasks.put(None)
        timer = threading.Timer(LAST_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()


def main() -> None:
    """Do one run, listening for orders and for the parent's death."""
    is_waiting = sys.argv[1] == "--wait"
    folder = None if is_waiting else Path(sys.argv[1])
    is_first = is_first_process()
    log = Path(sys.argv[2]) if folder is None else folder / _log_name()
    line = ParentLine(log)
    lower_priority()
    share_processor()
    keep_freed_memory()
    child = Child(folder)
    if is_first:
        line.listen(child.take, child.parent_gone)
    # After the real stdout was put aside: torch may print while it is imported.
    from segdesk.training.prepare import answer
    from segdesk.training.run import run_folder

    child.has_loaded = True
    while folder is None:
        task = child.tasks.get()
        if task is None:
            return
        if isinstance(task, RunOrder):
            folder = task.folder
            line.log_to(folder / "log.txt")
            # What starts the processes of further devices reads it there.
            sys.argv[1:] = [str(folder)]
        else:
            answer(task, line.send, child.next_answer())
            give_back_freed_memory()
    run_folder(folder, line.send, child.control)
    if is_first:
        # All is written: taking torch down in order takes half a second that a user who
        # pressed Stop, or waits for the next run, would feel.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _log_name() -> str:
    if is_first_process():
        return "log.txt"
    ranks = (os.environ.get(name, "0") for name in ("NODE_RANK", "LOCAL_RANK"))
    return f"log-{'-'.join(ranks)}.txt"


if __name__ == "__main__":
    main()
