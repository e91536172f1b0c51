"""The method: objectives, batches and the trainer."""
