"""Preference data as it enters: files and hub datasets, and the one reader of their rows."""
