"""Deliveries: what somebody hands over, and how it becomes part of a data folder."""
