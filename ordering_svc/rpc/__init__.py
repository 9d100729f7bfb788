"""The gRPC edge: messages, statuses, and the servicer between them."""
