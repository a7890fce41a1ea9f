"""What touches the world: gRPC, the engines."""
