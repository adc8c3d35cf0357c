"""The commands of python -m zoo, one module each."""
