"""Interactive parts for notebooks and Voilà pages. They never train in the kernel's own thread."""
