"""Enforcers of other makers, each in an environment of its own, and what they are measured with. See benchmarks/budget.py."""
