"""The asynchronous client: the same surface as the blocking one, with `await`."""
