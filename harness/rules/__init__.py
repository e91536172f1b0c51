"""Real questions with constraints that can be checked: the world whose reward is exact."""
