"""What people bring: crystals, micrographs and protocols, from files, texts and objects."""
