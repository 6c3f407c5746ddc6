"""One KFP component a file. Each reads artifacts, calls one audioscore function, and writes artifacts."""
