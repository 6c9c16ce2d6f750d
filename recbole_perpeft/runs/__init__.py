"""One run: its settings, its folder, and what it left."""
