"""Measuring what a version does: probes, replies, opening probabilities, intervals."""
