"""Reads what a model is made of, never its weights: folders, GGUF headers, hub ids, config text."""
