"""Mutated inputs, drawn from a seed, and the judge of how the command line ends on them."""
