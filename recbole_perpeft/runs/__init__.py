"""One run: its settings, its folder, and what is done with its model."""
