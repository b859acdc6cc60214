"""`python -m minipacs`."""

from minipacs.cli import main

main()
