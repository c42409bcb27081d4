"""What the trainer uses."""
