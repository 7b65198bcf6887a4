"""`python -m gnnrec` is the `gnnrec` command."""

from gnnrec.cli import main

main()
