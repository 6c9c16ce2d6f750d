"""Arrays on disk with a row an item: inputs of foundation models, and their hidden states."""
