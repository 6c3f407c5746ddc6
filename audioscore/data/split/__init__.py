"""One sorted list of clips, and its singer-disjoint train, validation and test splits."""
