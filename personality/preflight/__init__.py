"""What data, settings and the base itself say about a training run before it begins."""
