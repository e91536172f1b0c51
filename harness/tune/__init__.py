"""Optuna searches over plans."""
