"""One DAG a file, and the ways to compile and run it."""
