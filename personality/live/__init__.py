"""Training while a server answers: snapshots published to it, and the lock-free variant for comparison."""
