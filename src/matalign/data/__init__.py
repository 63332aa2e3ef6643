"""Raw files, what people bring, curated sets and their splits."""
