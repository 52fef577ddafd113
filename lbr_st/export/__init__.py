"""A released model for a faster backend of Sentence Transformers, made in an environment of its own."""
