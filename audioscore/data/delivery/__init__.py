"""Deliveries: add labelled recordings to a data folder, remove recordings, and make a new version of it."""
