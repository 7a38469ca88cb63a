"""Proving a steering vector: what it does to its behavior, beside placebos, a prompt, and what it costs elsewhere."""
