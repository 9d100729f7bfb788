"""Text to token ids and back, and conversations to text: all from the model file itself."""
