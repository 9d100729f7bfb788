"""Reads what lies at the places of adapters: configs, and the headers of tensor files, never the tensors."""
