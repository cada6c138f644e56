"""The trainer: samples rollouts, updates the LoRA policy, publishes its versions."""
