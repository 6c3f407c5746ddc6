"""KFP components, one per file. Each reads artifacts, calls library functions, and writes artifacts."""
