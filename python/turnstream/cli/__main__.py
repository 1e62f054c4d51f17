"""`python -m turnstream.cli`."""

from turnstream.cli import main

main()
