"""One self-contained page about runs, and the table of recorded results."""
