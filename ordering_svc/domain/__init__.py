"""What an ordering is, how it is read, written, made and judged: standard library only, no input or output."""
