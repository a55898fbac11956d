"""What the program remembers between starts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field, ValidationError

from segdesk.config.knobs import Knobs


class OnClose(StrEnum):
    """What becomes of a fine-tuning run when the window is closed."""

    ASK = "ask"
    GO_ON = "go on"
    STOP = "stop"


class RunHabits(Knobs):
    """What is done by itself around fine-tuning runs."""

    use_better: bool = Field(
        False,
        title="Use a better model by itself",
        description="When a run ends and the images held back show that its model is better, "
        "that becomes the model in use. Anything less than that is left to you.",
        json_schema_extra={"basic": True},
    )
    on_close: OnClose = Field(
        OnClose.ASK,
        title="Closing during a run",
        description="When the window is closed during a run: ask; go on: the run goes on without "
        "the window and is found again; stop: it ends, and its checkpoint is kept.",
        json_schema_extra={"basic": True},
    )


class AppSettings(Knobs):
    """Settings of the desktop app, kept in the user's config folder."""

    recent: tuple[Path, ...] = Field((), title="Recent projects", description="Newest first.")
    last_folder: Path | None = Field(
        None, title="Last folder", description="Where the last file dialog was."
    )
    habits: RunHabits = Field(
        RunHabits(), title="Runs", description="What is done by itself around fine-tuning runs."
    )

    @classmethod
    def parse(cls, text: str) -> AppSettings:
        """Read settings; a damaged or foreign file gives the defaults."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return cls()

    def with_recent(self, project: Path) -> AppSettings:
        """Put ``project`` first among the recent ones; ten are kept."""
        rest = tuple(p for p in self.recent if p != project)
        return self.model_copy(
            update={"recent": (project, *rest)[:10], "last_folder": project.parent}
        )
