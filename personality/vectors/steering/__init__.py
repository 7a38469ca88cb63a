"""Steering vectors: directions in activation space, how they are kept, and how they act on a model in memory."""
