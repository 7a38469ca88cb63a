"""Methods that look at a tensor as a whole: mergekit's, and those of singular vectors."""
