"""What a score means, apart from the model pass that measures it. NumPy only."""
