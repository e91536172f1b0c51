"""Asking a judge and reading what it says."""
