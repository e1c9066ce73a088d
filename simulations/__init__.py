"""Many devices on one machine or a Ray cluster: data, baselines, evaluation, the run folder."""
