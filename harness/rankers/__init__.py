"""Who prefers what: rankers, a file each with a record (`ranker`)."""
