"""Running a stage, and the record of who made what."""
