"""`python -P -m worker` is `projector`."""

from worker.cli import main

main()
