"""A version as files: writing checkpoints, building, exporting, verifying."""
