"""Many runs: comparisons of models and searches over settings."""
