"""User encoders: from the vectors of a history to the vector of its user."""
