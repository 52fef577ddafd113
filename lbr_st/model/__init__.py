"""The training model and its parts."""
