"""The run process: ``python -m segdesk.training RUN_DIR``."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.child import ParentLine, lower_priority, share_processor

#: After its parent died, a run has this long to write a checkpoint.
LAST_SECONDS = 10.0


def main() -> None:
    """Do one run, listening for a cancel order and for the parent's death."""
    folder = Path(sys.argv[1])
    line = ParentLine(folder / "log.txt")
    lower_priority()
    share_processor()
    token = CancelToken()

    def parent_gone() -> None:
        token.cancel()
        timer = threading.Timer(LAST_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()

    line.listen(lambda _: token.cancel(), parent_gone)
    # After the real stdout was put aside: torch may print while it is imported.
    from segdesk.training.run import run_folder

    run_folder(folder, line.send, token)


if __name__ == "__main__":
    main()
