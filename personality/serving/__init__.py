"""Serving versions: a vLLM beside this program, and what runs inside it."""
