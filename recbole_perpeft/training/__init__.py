"""Trainers, checkpoints and the ranks that metrics are computed from."""
