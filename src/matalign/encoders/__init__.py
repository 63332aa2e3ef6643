"""One tower per modality; a new modality is one new file here."""
