"""`python -m personality` is `persona`."""

from personality.cli.main import main

main()
