"""Ways of adapting a foundation model."""
