"""Icons, themes and the sample project."""
