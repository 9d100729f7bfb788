"""One definition for each architecture; adapters enter through the linear layers."""
