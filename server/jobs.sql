-- take_lease
-- Only when the job is due, and its last holder has finished or its lease has run out. All times are the database's.
INSERT INTO job_leases (job, holder, expire_time)
VALUES (%(job)s, %(holder)s, now() + %(lease)s::interval)
ON CONFLICT (job) DO UPDATE
SET holder = excluded.holder, expire_time = excluded.expire_time
WHERE job_leases.expire_time <= now()
    AND (job_leases.last_success_time IS NULL OR job_leases.last_success_time <= now() - %(interval)s::interval)
RETURNING holder;

-- renew_lease
UPDATE job_leases
SET expire_time = now() + %(lease)s::interval
WHERE job = %(job)s AND holder = %(holder)s
RETURNING holder;

-- finish_job
UPDATE job_leases
SET expire_time = now(), last_success_time = now()
WHERE job = %(job)s AND holder = %(holder)s
RETURNING holder;

-- read_last_success
-- In Unix time; 0 for never.
SELECT coalesce(extract(epoch FROM last_success_time), 0)::double precision
FROM job_leases
WHERE job = %(job)s;
