"""Events: what has changed for an organization, stored with the change and read as a stream."""
