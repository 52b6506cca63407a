"""Who can load it? Every file format that leaves this house, and nothing of mathematics."""
