"""What only a GPU can tell, in one command that stops by itself and goes on later: ``python -m studies.gpu --help``."""
