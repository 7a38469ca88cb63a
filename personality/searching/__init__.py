"""Searching by effect: which version broke a probe, which vector causes what, which scales and method are best."""
