"""The benchmarks of docs/evidence.md: recipes, data, starts."""
