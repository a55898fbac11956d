"""Verbs: what every face (window, plugin, command line) can do."""
