"""Floor 1: what is on disk. Knows nothing of what tensors mean; importing it does not import torch."""
