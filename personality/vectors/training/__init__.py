"""How a behavior is put into weights: Apollo, objectives, examples, batches, the trainer."""
