"""Composing a personality's weights: kernels, trimming thresholds, the plan, the tensors."""
