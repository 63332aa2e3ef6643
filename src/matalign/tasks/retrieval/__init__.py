"""Structures, protocols and images found by one another."""
