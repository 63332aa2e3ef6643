"""Contrastive pretraining: model, losses, batches, training, and what the trained towers make of a set."""
