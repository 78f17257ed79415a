"""Runs: the user's handle on tracked work, in a script, a test or a cell."""
