"""Reading a text: how far its activations lie along vectors' directions."""
