"""What changed from one version to another: gathered once, for the terminal, for programs and as a page."""
