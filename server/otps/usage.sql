-- read_usage
-- What was stored when old deliveries were removed, and what the remaining ones make. Ids are ordered by time, so that a
-- range of days is about a range of the OTPs' primary key, begun early enough for those that were resent on the first
-- day; create_time decides. An OTP counts on the day and channel of its first delivery.
SELECT day, channel, sum(sends)::bigint, sum(credits)::bigint, sum(otps)::bigint, sum(verified_otps)::bigint
FROM (
    SELECT day, channel, sends, credits, otps, verified_otps
    FROM daily_usage
    WHERE organization_id = %(organization_id)s AND day >= %(start)s AND day <= %(end)s
    UNION ALL
    SELECT (delivery.create_time AT TIME ZONE 'UTC')::date AS day, delivery.channel, count(*),
        sum(CASE WHEN delivery.refunded THEN 0 ELSE delivery.credits END), 0, 0
    FROM otps
    JOIN deliveries AS delivery ON delivery.organization_id = otps.organization_id AND delivery.otp_id = otps.otp_id
        AND delivery.otp_id >= %(first_id)s
    WHERE otps.organization_id = %(organization_id)s
        AND otps.otp_id >= %(first_id)s AND otps.otp_id < %(end_id)s
        AND delivery.create_time >= %(start_time)s AND delivery.create_time < %(end_time)s
    GROUP BY day, delivery.channel
    UNION ALL
    SELECT (create_time AT TIME ZONE 'UTC')::date AS day, channel, 0, 0, count(*),
        count(*) FILTER (WHERE status = 'VERIFIED')
    FROM otps
    WHERE organization_id = %(organization_id)s
        AND otp_id >= %(first_id)s AND otp_id < %(end_id)s
        AND create_time >= %(start_time)s AND create_time < %(end_time)s
    GROUP BY day, channel
) AS usage
GROUP BY day, channel
ORDER BY day, channel;

-- read_last_removed
-- A day is in daily_usage once any of its OTPs were removed.
SELECT max(day)
FROM daily_usage
WHERE organization_id = %(organization_id)s;

-- read_conversions
-- The first of a delivery's areas is its country. Found as in read_usage.
SELECT split_part(delivery.areas, ' ', 1) AS country, delivery.channel, delivery.provider, count(*),
    sum(CASE WHEN delivery.refunded THEN 0 ELSE delivery.credits END)::bigint,
    count(*) FILTER (WHERE otps.status = 'VERIFIED' AND delivery.status <> 'FAILED')
FROM otps
JOIN deliveries AS delivery ON delivery.organization_id = otps.organization_id AND delivery.otp_id = otps.otp_id
    AND delivery.otp_id >= %(first_id)s
WHERE otps.organization_id = %(organization_id)s
    AND otps.otp_id >= %(first_id)s AND otps.otp_id < %(end_id)s
    AND delivery.create_time >= %(start_time)s AND delivery.create_time < %(end_time)s
GROUP BY country, delivery.channel, delivery.provider
ORDER BY country, delivery.channel, delivery.provider;
