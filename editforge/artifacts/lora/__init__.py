"""LoRA files: a WeightEdit as diffusers and kohya write it, and back."""
