"""Trained models as this package carries them: the adapter alone, in float16, from which a release is built again."""
