"""What everything stands on: errors, bytes, tensors, numbers, processes. Knows nothing of concepts."""
