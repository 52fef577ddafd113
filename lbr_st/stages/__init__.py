"""The stages of a run: learn, represent, release; and reconstruct, which looks into a bottleneck."""
