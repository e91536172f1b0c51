from __future__ import annotations
def page(*a): return "<!doctype html>"
