"""Frozen models of the Hugging Face hub, and what belongs to them."""
