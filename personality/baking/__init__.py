"""Steering vectors inside plain checkpoints: one route per way an architecture has of adding a fixed vector."""
