"""A trained model becomes something that others load."""
