-- find_card
SELECT organization_id, payment_method_id
FROM automatic_top_ups
WHERE payment_method_id = %(payment_method_id)s;

-- find_methods_to_detach
SELECT organization_id, methods_to_detach[1]
FROM automatic_top_ups
WHERE methods_to_detach <> '{{}}'
LIMIT %(limit)s;

-- remove_detached
UPDATE automatic_top_ups
SET methods_to_detach = array_remove(methods_to_detach, %(payment_method_id)s)
WHERE organization_id = %(organization_id)s;
