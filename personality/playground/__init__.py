"""A small chat model with its world, data and probes, so that everything can be tried before a 30 GB download."""
