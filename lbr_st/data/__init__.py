"""Domain text, pairs and retrieval sets: read, checked, split, and kept on disk. It knows no recipe and no model."""
