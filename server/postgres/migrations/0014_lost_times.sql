-- The times that the database has lost, as it was restored to an earlier one: repeats of requests from then are refused.
--
-- A row for each restore; on Citus the table stays on the coordinator.

CREATE TABLE lost_times (
    restore_time timestamptz NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    PRIMARY KEY (restore_time),
    CONSTRAINT a_lost_time_ends_after_it_begins CHECK (start_time < end_time)
);
