"""Photos: where they are, and what they look like once decoded."""
