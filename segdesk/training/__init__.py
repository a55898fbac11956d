"""Fine-tuning: data, losses, the loop and the run process."""
