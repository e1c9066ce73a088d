"""What a privacy officer runs: reads ledgers and run folders, trusts neither, needs no torch."""
