"""New activation functions by evolution: `python -m search`."""
