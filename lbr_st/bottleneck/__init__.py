"""Stage 1's mathematics: rows, passes, loss, gain, and decoding the bottleneck."""
