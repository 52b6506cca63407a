"""What steers sampling instead of changing weights."""
