"""From the trainer's weights to the inference server: published, served, proven."""
