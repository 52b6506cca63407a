"""Guards: what steers sampling and changes no weight."""
