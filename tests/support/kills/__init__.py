"""Programs that are killed at moments drawn from a seed, then finished, and compared with what was left alone."""
