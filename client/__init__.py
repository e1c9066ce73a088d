"""Everything that runs on a device: history, profile, scoring, local training."""
