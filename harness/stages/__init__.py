"""The pipeline, a stage a file."""
