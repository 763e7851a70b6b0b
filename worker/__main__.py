"""`python -P -m worker` is `projector`."""

from worker.entry import main

main()
