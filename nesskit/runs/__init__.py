"""A run as it lies on disk, what it reports while it goes on, and what one or many of them say."""
