"""Recordings from wherever a labels table says they are: a folder, a web server, a bucket."""
