"""Stage ``diagnostics``: `stage` runs it, `measures` defines what is measured."""
