"""The gRPC API: the server, the interceptor of every call, the two services, and conversion from and to protobuf."""
