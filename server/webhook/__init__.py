"""The webhook sidecar: a small HTTP server that relays Stripe's webhooks to the gRPC server."""
