"""Floor 2: what a behavior is made of: lazy checkpoints, task and low-rank vectors, their encodings, training."""
