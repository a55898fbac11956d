"""What the program remembers between starts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from segdesk.config.knobs import Knobs


class AppSettings(Knobs):
    """Settings of the desktop app, kept in the user's config folder."""

    recent: tuple[Path, ...] = Field((), title="Recent projects", description="Newest first.")
    last_folder: Path | None = Field(
        None, title="Last folder", description="Where the last file dialog was."
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
