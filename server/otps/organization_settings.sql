-- read_versions
SELECT version, settings::text, changed_fields, updated_by, create_time
FROM organization_settings
WHERE organization_id = %(organization_id)s AND version < %(before_version)s
ORDER BY version DESC
LIMIT %(limit)s;

-- insert_version
-- The account is locked: versions have no gaps.
INSERT INTO organization_settings (organization_id, version, settings, changed_fields, updated_by, create_time)
VALUES (%(organization_id)s, %(version)s, %(settings)s, %(changed_fields)s, %(updated_by)s, %(now)s);

-- set_version
UPDATE accounts
SET settings_version = %(version)s
WHERE organization_id = %(organization_id)s;
