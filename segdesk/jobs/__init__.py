"""Running things: worker processes, their messages, and calling them off."""
