"""Talking to versions: streamed replies, conversations that are kept, and what is made of them."""
