"""Gene profiles in words, their vectors, and what these predict: interactions and perturbation response."""
