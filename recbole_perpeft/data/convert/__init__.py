"""Doors of version 0.1.0; the converters are in `recbole_perpeft.convert`."""
