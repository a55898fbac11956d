"""Nouns: what SegDesk talks about. No I/O, no torch, no Qt."""
