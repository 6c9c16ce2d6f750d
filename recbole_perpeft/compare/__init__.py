"""Comparing models: `python -m recbole_perpeft.compare`; `comparison.compare` from Python."""
