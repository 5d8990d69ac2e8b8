"""The threshold explorer."""
