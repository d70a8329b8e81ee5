"""Measurements; each script says what it needs and prints what it found."""
