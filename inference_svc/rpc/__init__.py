"""The gRPC surface: decode, call, encode."""
