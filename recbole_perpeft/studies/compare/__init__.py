"""Comparisons of models under one protocol; `comparison.compare` from Python."""
