-- Which replica runs a periodic job, for the jobs that one replica at a time runs, and when the job last succeeded.
--
-- All times are the database's. The table has a row for each such job; on Citus it stays on the coordinator.

CREATE TABLE job_leases (
    job text NOT NULL,
    holder uuid NOT NULL,
    expire_time timestamptz NOT NULL,
    last_success_time timestamptz,
    PRIMARY KEY (job)
);
