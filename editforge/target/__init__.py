"""What an erased concept becomes, and what must not move."""
