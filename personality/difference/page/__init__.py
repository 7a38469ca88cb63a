"""The page of a difference: one file of HTML that needs nothing else, no network and no fonts."""
