"""What the space is put to: one folder a task, each with its baselines and scores."""
