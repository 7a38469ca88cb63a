"""How vectors come to be: training runs, imports, and their manifests."""
