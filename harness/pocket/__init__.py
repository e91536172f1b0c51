"""The embedded world: a closed language, its oracle, its judge server and its benchmark tasks."""
