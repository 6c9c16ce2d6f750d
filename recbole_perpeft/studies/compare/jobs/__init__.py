"""What a comparison runs: the models with their settings and controls, one job a model and seed."""
