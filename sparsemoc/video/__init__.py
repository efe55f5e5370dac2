"""Real video for the command line and the examples: decoding, cuts, and the sample clips."""
