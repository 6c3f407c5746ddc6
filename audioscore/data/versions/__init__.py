"""Versions of a data folder: record, push, pull and compare them with DVC, and fetch a folder from its storage."""
