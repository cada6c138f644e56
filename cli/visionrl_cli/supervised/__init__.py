"""What ``visionrl train`` does, from the command's words to the model."""
