-- Notices are whole letters: to the organization by its name, in the language and the time zone of its billing contact.
ALTER TABLE accounts ADD COLUMN billing_name text NOT NULL DEFAULT '';
ALTER TABLE accounts ADD COLUMN alert_locale text NOT NULL DEFAULT '';
ALTER TABLE accounts ADD COLUMN alert_time_zone text NOT NULL DEFAULT '';
