"""Learning to rank: pairs, loss, loop."""
