"""A small chat model with its world, data and probes: everything can be tried before a 30 GB download."""
