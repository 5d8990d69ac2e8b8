"""The loop that learns one task after another."""
