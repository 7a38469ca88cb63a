"""How a behavior's direction is found in a model's activations: contrasting texts, positions, numbers."""
