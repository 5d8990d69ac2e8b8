"""nesskit."""
