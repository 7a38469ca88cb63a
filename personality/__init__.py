"""persona: version control for a language model's behavior."""

__version__ = "0.1.0"
