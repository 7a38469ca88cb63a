"""What a repository's versions are and how they change: recipe, history, changes, undo, state."""
