"""The model that others use, and its command line."""
