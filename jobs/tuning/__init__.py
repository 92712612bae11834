"""A study: which settings give the best vectors of a corpus."""
