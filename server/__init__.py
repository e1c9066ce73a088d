"""Everything that runs where updates are aggregated: cohorts, validation, private step, strategy."""
