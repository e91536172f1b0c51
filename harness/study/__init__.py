"""What is asked: settings, and a YAML file as cells."""
