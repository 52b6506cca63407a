"""What passes between stages: small, checked, saved as text or safetensors."""
