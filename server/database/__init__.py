"""The cellar: pool, batcher, named queries, migrations and the embedded PostgreSQL."""
