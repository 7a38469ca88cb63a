"""Steering vectors in the files of other programs: llama.cpp and repeng, safetensors, persona_vectors."""
