"""What the experiments share: networks, the training step, measurement, records and the look of figures."""
