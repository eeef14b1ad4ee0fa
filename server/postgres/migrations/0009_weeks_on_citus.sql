-- As in 0003_partitions.sql, but for SELECT 1: Citus refuses a SELECT without a column, also in EXISTS.
--
-- Remove the oldest week of `parent` if it ended before `before`; returns whether there was one. A week's deliveries are
-- removed before its OTPs, and their usage is stored in the same transaction.
--
-- Raises an error while a delivery of the week is QUEUED: it must be sent or settled first.
CREATE OR REPLACE FUNCTION remove_week(parent text, before timestamptz) RETURNS boolean
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
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM public.%I WHERE otp_id < $1)', parent || '_default')
        INTO has_rows USING end_id;
        IF NOT has_rows THEN
            RETURN false;
        END IF;
    END IF;
    IF EXISTS (SELECT 1 FROM public.deliveries WHERE otp_id < end_id AND (status = 'QUEUED' OR parent = 'otps')) THEN
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
