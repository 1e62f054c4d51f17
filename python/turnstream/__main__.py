"""`python -m turnstream`."""

from turnstream.cli import main

main()
