"""The laboratory: synthetic data, simulated federations, judgement. Nothing imports it."""
