"""`python -m raydistill.cli`: the console script `raydistill`, where that is not installed."""

from raydistill.cli.app import main

main()
