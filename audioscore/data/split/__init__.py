"""Sort the accepted clips, and split them into singer-disjoint train, validation and test splits."""
