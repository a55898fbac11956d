"""The engine process: ``python -m segdesk.inference LOG``."""

from __future__ import annotations

import sys
from pathlib import Path

from segdesk.jobs.child import Doorkeeper, ParentLine, lower_priority, share_processor
from segdesk.jobs.heap import keep_freed_memory


def main() -> None:
    """Listen for orders until the parent goes away."""
    line = ParentLine(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    lower_priority()
    share_processor()
    keep_freed_memory()
    door = Doorkeeper()
    line.listen(door.take, door.parent_gone)
    # After the real stdout was put aside: torch may print while it is imported.
    from segdesk.inference.engine import Engine
    from segdesk.jobs.messages import Architecture, Ready
    from segdesk.nn.device import pick_device
    from segdesk.nn.registry import architectures

    engine = Engine(line.send)
    door.open_to(engine.take, engine.stop)
    choice = pick_device("auto")
    known = tuple(
        Architecture(name=s.name, title=s.title, year=s.year, needs_labels=s.needs_labels)
        for s in architectures().values()
    )
    line.send(Ready(device=str(choice.device), reason=choice.reason, architectures=known))
    engine.run()


if __name__ == "__main__":
    main()
