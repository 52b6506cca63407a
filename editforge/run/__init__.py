"""What runs a recipe: in a folder with resume, in memory, or only as a plan."""
