"""`python -m editforge`, and `accelerate launch -m editforge`."""

from editforge.cli.main import main

main()
