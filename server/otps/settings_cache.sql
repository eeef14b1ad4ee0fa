-- find_new
-- Of each organization the newest version that was made since.
SELECT DISTINCT ON (organization_id) organization_id, version, settings::text, create_time
FROM organization_settings
WHERE create_time >= %(since)s
ORDER BY organization_id, version DESC;

-- read
SELECT version, settings::text, version = (
        SELECT settings_version
        FROM accounts
        WHERE organization_id = %(organization_id)s
    )
FROM organization_settings
WHERE organization_id = %(organization_id)s AND version = ANY(%(versions)s);

-- create_test_accounts
INSERT INTO accounts (organization_id, low_balance_threshold, window_start_time, create_time)
SELECT organization_id, 0, now(), now()
FROM unnest(%(organization_ids)s::text[]) AS test (organization_id)
ON CONFLICT (organization_id) DO NOTHING;
