"""PostgreSQL: the connection pool, pipelines, the batcher, named queries, migrations and the embedded server."""
