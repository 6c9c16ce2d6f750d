"""Comparing models: `python -m recbole_perpeft.studies.compare`; `comparison.compare` from Python."""
