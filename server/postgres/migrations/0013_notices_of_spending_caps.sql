-- Lets notices say that a day's spending cap is reached. NOT VALID: the stored rows kept the narrower rule.
ALTER TABLE notices DROP CONSTRAINT kind_is_known;
ALTER TABLE notices
ADD CONSTRAINT kind_is_known CHECK (kind IN ('PAYMENT_CONFIRMED', 'BALANCE_LOW', 'SPENDING_CAP_REACHED')) NOT VALID;
