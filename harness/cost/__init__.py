"""What a plan will take."""
