"""The front door: servicers that turn protobuf into domain calls, and what every call passes on its way in."""
