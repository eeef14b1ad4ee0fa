-- The weekly partitions of OTPs and deliveries, made ahead of time and dropped by retention.
--
-- The application's role may not change the schema: it calls these functions, which run as the schema's owner. Each call
-- changes one table, so that no two transactions wait for each other. Others queue behind it only while it waits for
-- its lock, at most 0.2 s.
--
-- Weeks and not days: each connection keeps plans with every partition of the retention period. With 18 partitions they
-- took 8 MB, with 106 19 MB, and a statement on all of them three times as long.

-- Every delivery is updated once, when its outcome is stored. With room on its page the update is HOT and changes none
-- of the table's indexes. Deliveries of a page are stored at about the same time, so that each needs room for itself:
-- with 85 % a quarter of the updates was HOT, with 45 % all of them, for a tenth more disk.
CREATE FUNCTION partition_options(parent text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE parent WHEN 'deliveries' THEN 'fillfactor = 45' ELSE 'fillfactor = 85' END || ', vacuum_truncate = off'
$$;

-- The smallest id of a moment, as the server's first_id makes it.
CREATE FUNCTION first_id(moment timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid
$$;

-- A default partition takes the ids of every time without a partition: those of a clock that was far off, and new ones
-- if create_partitions() was not called for two weeks.
DO $$
DECLARE
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['otps', 'deliveries'] LOOP
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF %I DEFAULT WITH (%s)', parent || '_default', parent, partition_options(parent)
        );
    END LOOP;
END
$$;

-- Make the partition of the week that begins at `week`, unless it exists; returns whether it did not. Rows of the week
-- that are in the default partition are moved to it.
CREATE FUNCTION create_partition(parent text, week date) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text := parent || to_char(week, '"_"YYYYMMDD');
    begin_id uuid := public.first_id(week::timestamp AT TIME ZONE 'UTC');
    end_id uuid := public.first_id((week + interval '1 week') AT TIME ZONE 'UTC');
BEGIN
    IF to_regclass(format('public.%I', partition)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE public.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS) WITH (%s)',
        partition, parent, public.partition_options(parent)
    );
    EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', parent || '_default');
    EXECUTE format(
        'WITH late AS (DELETE FROM public.%I WHERE otp_id >= $1 AND otp_id < $2 RETURNING *)'
        ' INSERT INTO public.%I SELECT * FROM late', parent || '_default', partition
    ) USING begin_id, end_id;
    EXECUTE format(
        'ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        parent, partition, begin_id, end_id
    );
    RETURN true;
END
$$;

-- Make the partitions of this week and of the next two; returns how many were missing.
CREATE FUNCTION create_partitions(parent text) RETURNS integer
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
SELECT count(*) FILTER (WHERE public.create_partition(parent, week::date))
FROM (SELECT date_trunc('week', now() AT TIME ZONE 'UTC') AS this_week) AS clock
CROSS JOIN generate_series(this_week, this_week + interval '2 weeks', interval '1 week') AS week
$$;

-- Remove the oldest week of `parent` if it ended before `before`; returns whether there was one. A week's deliveries are
-- removed before its OTPs, and their usage is stored in the same transaction.
--
-- Raises an error while a delivery of the week is QUEUED: it must be sent or settled first.
CREATE FUNCTION remove_week(parent text, before timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
SET plan_cache_mode = 'force_custom_plan' SET enable_seqscan = 'on' SET enable_bitmapscan = 'on'
SET enable_hashjoin = 'on' SET work_mem = '64MB' AS $$
DECLARE
    this_week timestamp := date_trunc('week', before AT TIME ZONE 'UTC');
    partition text;
    end_id uuid := public.first_id(this_week AT TIME ZONE 'UTC');
    has_rows boolean;
BEGIN
    SELECT min(relname) INTO partition
    FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = to_regclass(format('public.%I', parent))
        AND relname < parent || to_char(this_week, '"_"YYYYMMDD');
    IF partition IS NOT NULL THEN
        end_id := public.first_id((to_date(right(partition, 8), 'YYYYMMDD') + interval '1 week') AT TIME ZONE 'UTC');
    ELSE
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE otp_id < $1)', parent || '_default')
        INTO has_rows USING end_id;
        IF NOT has_rows THEN
            RETURN false;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM public.deliveries WHERE otp_id < end_id AND (status = 'QUEUED' OR parent = 'otps')) THEN
        RAISE EXCEPTION 'the deliveries before % are not removed, or not settled', end_id;
    END IF;
    IF parent = 'deliveries' THEN
        INSERT INTO public.daily_usage (organization_id, day, channel, sends, credits, otps, verified_otps)
        SELECT organization_id, day, channel, sum(sends), sum(credits), sum(otps), sum(verified_otps)
        FROM (
            SELECT organization_id, (create_time AT TIME ZONE 'UTC')::date AS day, channel, count(*) AS sends,
                sum(CASE WHEN refunded THEN 0 ELSE credits END) AS credits, 0 AS otps, 0 AS verified_otps
            FROM public.deliveries
            WHERE otp_id < end_id
            GROUP BY organization_id, day, channel
            UNION ALL
            SELECT organization_id, (create_time AT TIME ZONE 'UTC')::date AS day, channel, 0, 0, count(*),
                count(*) FILTER (WHERE status = 'VERIFIED')
            FROM public.otps
            WHERE otp_id < end_id
            GROUP BY organization_id, day, channel
        ) AS removed
        GROUP BY organization_id, day, channel
        ON CONFLICT (organization_id, day, channel) DO UPDATE
        SET sends = daily_usage.sends + excluded.sends,
            credits = daily_usage.credits + excluded.credits,
            otps = daily_usage.otps + excluded.otps,
            verified_otps = daily_usage.verified_otps + excluded.verified_otps;
    END IF;
    EXECUTE format('DELETE FROM public.%I WHERE otp_id < $1', parent || '_default') USING end_id;
    IF partition IS NOT NULL THEN
        EXECUTE format('DROP TABLE public.%I', partition);
    END IF;
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION create_partition(text, date), create_partitions(text), remove_week(text, timestamptz)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_partitions(text), remove_week(text, timestamptz) TO pulsa_application;
SELECT create_partitions('otps'), create_partitions('deliveries');
