"""Energies, gaps and moduli."""
